from pathlib import Path

import numpy as np
import pytest

from actors.training import head
from actors.training.encoder import TokenCache, load_encoder
from potstill.config.student import StudentConfig
from tests.support.tiny_student import make_student

pytestmark = pytest.mark.slow

LABELS = ["food", "rain", "work"]
TEXTS = [
    ("we ate soup and bread", 0),
    ("the cake was sweet", 0),
    ("it rained all night long without a break and the street was wet", 1),
    ("a storm is coming", 1),
    ("my boss called a meeting", 2),
    ("the office opens at nine", 2),
]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(StudentConfig(), LABELS)


def tokens(encoder):
    known = TokenCache()
    encoder.tokenise([text for text, _ in TEXTS], known)
    return [known.ids[text] for text, _ in TEXTS]


def fit(encoder, ids, targets, weights):
    features = head.compute_features(encoder, ids, "cpu")
    encoder.model.load_state_dict(head.fit_head(encoder, features, targets, weights), strict=False)


def test_the_added_layer_computes_the_mean(encoder):
    import torch

    assert encoder.mean_pooled
    assert encoder.model.config.num_hidden_layers == 7
    found = head.compute_features(encoder, tokens(encoder), "cpu")
    batch = encoder.collate(tokens(encoder), "cpu")
    layers = encoder.model.bert.encoder.layer
    with torch.no_grad():
        states = encoder.model.bert(**batch, output_hidden_states=True).hidden_states[len(layers) - 1]
    for row, text in zip(found, torch.split(states[0], [len(ids) for ids in tokens(encoder)]), strict=True):
        assert np.corrcoef(np.arctanh(row), text.mean(0).numpy())[0, 1] > 0.99


def test_features_do_not_depend_on_padding(encoder):
    together = head.compute_features(encoder, tokens(encoder), "cpu")
    alone = np.concatenate([head.compute_features(encoder, [ids], "cpu") for ids in tokens(encoder)])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_starts_as_the_regression(classes):
    import torch

    encoder = load_encoder(StudentConfig(), LABELS[:classes])
    chosen = [(ids, label) for ids, (_, label) in zip(tokens(encoder), TEXTS, strict=True) if label < classes]
    ids, truth = [ids for ids, _ in chosen], np.array([label for _, label in chosen])
    targets = np.eye(classes, dtype=np.float32)[truth]
    fit(encoder, ids, targets, np.full(len(ids), 3.0, dtype=np.float32))
    with torch.no_grad():
        logits = encoder.model(**encoder.collate(ids, "cpu")).logits.numpy()
    assert (logits.argmax(1) == truth).all()

    from sklearn.linear_model import LogisticRegression

    features = head.compute_features(encoder, ids, "cpu")
    reference = LogisticRegression(C=head.STRENGTH, max_iter=1000).fit(features, truth).predict_proba(features)
    ours = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(ours, reference, atol=1e-3)


def test_a_class_without_texts_is_never_chosen():
    import torch

    encoder = load_encoder(StudentConfig(), [*LABELS, "absent"])
    targets = np.eye(4, dtype=np.float32)[[label for _, label in TEXTS]]
    fit(encoder, tokens(encoder), targets, np.ones(len(TEXTS), dtype=np.float32))
    with torch.no_grad():
        logits = encoder.model(**encoder.collate(tokens(encoder), "cpu")).logits.numpy()
    assert (logits.argmax(1) == [label for _, label in TEXTS]).all()


def test_native_pooling_leaves_the_checkpoint_alone():
    encoder = load_encoder(StudentConfig(pooling="native"), LABELS)
    assert not encoder.mean_pooled
    assert encoder.model.config.num_hidden_layers == 6


def test_a_sentence_encoder_other_than_bert_reports_what_is_lost(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    folder = Path(make_student(tmp_path / "tiny"))
    config = DistilBertConfig(vocab_size=94, dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64)
    DistilBertModel(config).save_pretrained(folder)
    assert load_encoder(StudentConfig(model=str(folder)), LABELS).warnings == ()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    encoder = load_encoder(StudentConfig(model=str(folder)), LABELS)
    assert not encoder.mean_pooled
    (warning,) = encoder.warnings
    assert "of type distilbert: mean pooling is kept for BERT only" in warning
    assert load_encoder(StudentConfig(model=str(folder), pooling="native"), LABELS).warnings == ()
