"""What the Hugging Face hub says of a model, from its cache where there is no network."""

from __future__ import annotations

from pathlib import Path

_TIMEOUT_S = 5.0


def find_file(name: str, file: str) -> Path | None:
    """A local copy of a file of the model ``name``; ``None`` where it has none, or nobody can be asked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (EntryNotFoundError, OSError, ValueError):  # ValueError: no id of the hub
        return None


def find_commit(name: str) -> str | None:
    """The commit that the model ``name`` is at: the hub's newest, else the cached one; ``None`` where nobody knows."""
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        return model_info(name, timeout=_TIMEOUT_S).sha
    except HFValidationError:
        return None
    except (OSError, OfflineModeIsEnabled):
        cached = try_to_load_from_cache(name, "config.json")  # .../snapshots/<commit>/config.json
        return Path(cached).parent.name if isinstance(cached, str) else None
