"""The file that diffratio_kernels reads its tiles from."""

from __future__ import annotations

import json
from pathlib import Path

KEYS = {
    "products": ("kernel", "architecture", "columns", "inner", "rows"),
    "attention": ("kernel", "architecture", "held"),
    "ratios": ("kind", "architecture", "head_dim", "queries", "keys"),
}
"""What names an entry of each list, in the order in which the list is sorted."""


class Table:
    """All entries of a file such as tiles.json, in memory until `save`."""

    def __init__(self, path: Path):
        self.path = path
        lists = json.loads(path.read_text())
        self.entries = {name: {_key(name, entry): entry for entry in lists.get(name, ())} for name in KEYS}

    def get(self, entry: dict) -> dict:
        """The entry with the same key, empty where there is none."""
        name = _list(entry)
        return self.entries[name].get(_key(name, entry), {})

    def put(self, entry: dict) -> None:
        """Add an entry, or replace the one with the same key."""
        name = _list(entry)
        self.entries[name][_key(name, entry)] = entry

    def save(self) -> None:
        """Write the file as a whole, an entry a line: what changed can be read in a diff."""
        lists = []
        for name, entries in self.entries.items():
            lines = ",".join(f"\n  {json.dumps(entries[key])}" for key in sorted(entries))
            lists.append(f' "{name}": [{lines}\n ]')
        partial = self.path.with_suffix(".partial")
        partial.write_text("{\n" + ",\n".join(lists) + "\n}\n")
        partial.replace(self.path)


def _list(entry: dict) -> str:
    return "ratios" if "kind" in entry else "attention" if "held" in entry else "products"


def _key(name: str, entry: dict) -> tuple:
    return tuple(entry[field] for field in KEYS[name])
