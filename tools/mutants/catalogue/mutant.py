"""What a planted bug is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """kind: class of bug. edits: text that must occur once in `file` -> what replaces it.

    tests: arguments of pytest, the tests that should fail. sanitize: run them under ASan and UBSan.
    """

    name: str
    kind: str
    file: str
    edits: dict[str, str]
    tests: str
    sanitize: bool = False
