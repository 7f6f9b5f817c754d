"""The packages that the extras name."""

import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def names(requirements) -> set[str]:
    return {re.match(r"[\w.-]+", one)[0] for one in requirements} - {"diffratio-kernels"}


def test_training_installs_what_encodes_captions():
    """T5 tokenizers are read from sentencepiece models; that peft brings transformers along is luck."""
    assert names(EXTRAS["train"]) >= {"transformers", "sentencepiece"}


def test_everything_an_extra_installs_is_pinned():
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+|#.*", line) for line in pinned)
    assert names(sum(EXTRAS.values(), [])) <= names(line for line in pinned if line[0] != "#")
