"""The packages that the extras name."""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

from diffratio import extras

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


def test_a_missing_package_is_looked_up_in_the_extras_themselves():
    imported, first = {"pillow": "PIL", "scikit-learn": "sklearn"}, {}
    for extra in extras.EXTRAS:
        for name in names(EXTRAS[extra]):
            first.setdefault(imported.get(name, name), extra)
    assert first == extras.EXTRA_OF
    assert "diffratio-kernels[diffusers]" in EXTRAS["demo"] and "diffratio-kernels[demo]" in EXTRAS["train"]


def test_the_extra_that_is_named_holds_what_was_missing_and_what_the_command_needs():
    def named(extra: str, package: str) -> str:
        return str(extras.missing("x", ModuleNotFoundError(name=package), extra)).rpartition(" ")[2]

    assert named("demo", "typer") == '".[demo]"' and named("diffusers", "sklearn.svm") == '".[demo]"'
    assert named("triton", "rich") == '".[triton]"' and named("diffusers", "peft") == '".[train]"'
    unknown = ModuleNotFoundError("install datasets", name="datasets")
    assert extras.missing("x", unknown, "demo") is unknown
