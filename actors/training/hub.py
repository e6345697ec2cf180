"""Look-ups of a model on the Hugging Face hub, or in its cache without a network."""

from __future__ import annotations

from pathlib import Path

_TIMEOUT_S = 5.0


def find_file(name: str, file: str) -> Path | None:
    """A local copy of a file of the model ``name``; None if the model lacks it or the hub can't be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (EntryNotFoundError, OSError, ValueError):  # ValueError: not a hub id
        return None


def find_commit(name: str) -> str | None:
    """The commit of the model ``name``: the hub's newest, else the cached one, else None."""
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        return model_info(name, timeout=_TIMEOUT_S).sha
    except HFValidationError:
        return None
    except (OSError, OfflineModeIsEnabled):
        cached = try_to_load_from_cache(name, "config.json")  # .../snapshots/<commit>/config.json
        return Path(cached).parent.name if isinstance(cached, str) else None
