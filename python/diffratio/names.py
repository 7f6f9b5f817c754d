"""Names of models and data sets: which of them a hub can know."""

import re
from pathlib import Path

_PART = r"[\w-][\w.-]*"


def is_hub_id(name: str) -> bool:
    """Return whether a hub may have something of that name, "name" or "owner/name"; all else is a path.

    What lies on disk goes before a hub: see ``on_disk``.

        >>> [is_hub_id(name) for name in ("PixArt-alpha/PixArt-XL-2-512x512", "photos/", "./photos", "a/b/c")]
        [True, False, False, False]
    """
    return re.fullmatch(f"{_PART}(/{_PART})?", name) is not None


def on_disk(name: str) -> bool:
    """Return whether ``name`` is a folder here. Of one that is, nothing is asked of a hub."""
    return Path(name).is_dir()


def located(name: str) -> str:
    """Return ``name`` as it can be found from every working directory: of a folder its absolute path.

    Names of built-in things come first: ask for those before.
    """
    return str(Path(name).resolve()) if on_disk(name) else name
