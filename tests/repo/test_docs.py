"""The pages of docs/: what they name exists, their code runs, and each is in the index."""

import importlib
import re
from pathlib import Path

import pytest

import diffratio_kernels  # noqa: F401  registers torch.ops.diffratio

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (
    "index.md", "how-it-works.md", "add-a-kernel.md", "add-a-model.md", "training.md", "evaluation.md",
    "baselines.md", "inpainting.md",
)  # fmt: skip
"""The pages whose names are held against the sources."""
WHOLE = ("torch.", "tools.", "diffratio.", "diffratio_kernels.")
"""Dotted names that begin like this are those of imports."""
WITHIN = ("diffratio_kernels", "diffratio_kernels.ops", "diffratio_kernels.blocks", "diffratio")
"""Where a dotted name of a page begins: `route.reference.select_tokens` is one of diffratio_kernels.ops."""
WRITTEN = ("build", "out", ".venv")
"""Folders that commands make."""
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
PATH = re.compile(r"[\w.-]+(/[\w.*-]+)+/?|\w[\w-]*\.(py|md|json|cu|cuh|h|cpp)")


def code_spans(text: str) -> set[str]:
    """What a page sets in code font, without the blocks between fences."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one (a field of a dataclass is, too)."""
    return any(_found(f"{base}.{name}") for base in WITHIN) or (name.startswith(WHOLE) and _found(name))


def _found(name: str) -> bool:
    module, rest = name, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
            if not module:
                return False
    for part in rest:
        fields = getattr(found, "__dataclass_fields__", {})
        if not hasattr(found, part) and part not in fields:
            return False
        found = getattr(found, part, None)
    return True


def is_path(span: str) -> bool:
    return PATH.fullmatch(span) is not None


def exists(path: str, page: Path) -> bool:
    """From the root of the checkout, or beside the page; `op.py` alone is a file that some operator has."""
    if "/" not in path and any(ROOT.glob(f"diffratio_kernels/ops/*/{path}")):
        return True
    return bool(list(ROOT.glob(path.rstrip("/"))) or list(page.parent.glob(path)))


def missing(text: str, page: Path) -> list[str]:
    """Paths and dotted names in code font that are nowhere."""
    spans = code_spans(text)
    paths = {span for span in spans if is_path(span)}
    names = {span for span in spans - paths if NAME.fullmatch(span)}
    bad = [path for path in paths if not exists(path, page)]
    return sorted([*bad, *(name for name in names if not resolves(name))])


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_a_page_exists(page):
    assert missing((DOCS / page).read_text(), DOCS / page) == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "tools/README.md"])
def test_paths_and_links_of_other_pages_lead_somewhere(page):
    """A path is one that begins with a folder of the checkout."""
    file = ROOT / page
    text, folders = file.read_text(), {path.name for path in ROOT.iterdir() if path.name not in WRITTEN}
    paths = {span for span in code_spans(text) if is_path(span) and span.partition("/")[0] in folders}
    assert [path for path in paths if not exists(path, file)] == []
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert paths or links
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_how_it_works_names_every_operator_and_the_steps_of_a_patched_model():
    text = (DOCS / "how-it-works.md").read_text()
    folders = {path.parent.name for path in ROOT.glob("diffratio_kernels/ops/*/__init__.py")}
    assert folders - {"ops"} <= set(re.findall(r"^### (\w+)$", text, flags=re.MULTILINE))
    names = {span for span in code_spans(text) if NAME.fullmatch(span) and not is_path(span)}
    assert len(names) > 60
    assert {"blocks.routed.routed", "families.inspection.Fingerprint", "routing.state.SavedRouting"} <= names


@pytest.mark.parametrize(
    "gone",
    [
        "route.reference.select_token",
        "blocks.stream.Stream.token",
        "nowhere.at_all",
        "diffratio_kernels/ops/route/select.py",
        "reference.pyx.md",
        "csrc/*/nothing.h",
    ],
)
def test_a_name_that_is_gone_is_seen(gone):
    assert missing(
        f"See `{gone}` and `blocks.stream.Stream.tokens`, `op.py`, `csrc/cpu`.", DOCS / "x.md"
    ) == [gone]


def test_the_index_lists_every_page_and_links_lead_somewhere():
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))
    assert listed == {path.name for path in DOCS.glob("*.md")} - {"index.md"}
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", (DOCS / page).read_text()):
            assert link.startswith("https://") or (DOCS / link).exists(), (page, link)


def test_the_code_of_a_model_of_ones_own_runs(capsys):
    """Its specs are compared with the dense model in it."""
    from diffratio.families import registry

    text = (DOCS / "add-a-model.md").read_text()
    try:
        code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
        exec(compile(code, "add-a-model.md", "exec"), {"__name__": "add_a_model"})
    finally:
        for cls in [cls for cls in registry._specs if cls.__module__ == "add_a_model"]:
            del registry._specs[cls]  # others are of families whose files were imported meanwhile
    said = capsys.readouterr().out
    assert said.count("its spec gives no raw weights") == 6 and said.count("mod_block, ") == 3
    assert said.count("operators, ") == 2


def test_a_family_is_written_in_less_than_40_lines():
    """The spec that the page ends with, and the transformer that it is of."""
    *_, transformer, spec = re.findall(
        r"```python\n(.*?)```", (DOCS / "add-a-model.md").read_text(), flags=re.DOTALL
    )
    assert "class JointSpec(ModuleSpec)" in spec and "class JointModel(nn.Module)" in transformer
    assert max(len(code.splitlines()) for code in (transformer, spec)) < 40


def test_the_code_of_baselines_runs(capsys):
    text = (DOCS / "baselines.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, "baselines.md", "exec"), {"__name__": "baselines"})
    assert "baseline atedm:0.2:residual: no routers" in capsys.readouterr().out


def test_the_code_of_training_runs_and_its_flags_are_known():
    from diffratio.train import TrainArguments

    text = (DOCS / "training.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    exec(compile(code, "training.md", "exec"), {"__name__": "training"})
    commands = re.sub(r" \\\n +", " ", text)
    flags = re.findall(r"--(\w+)", "\n".join(re.findall(r"^ +diffratio train .*", commands, re.MULTILINE)))
    assert len(flags) > 5 and set(flags) <= set(TrainArguments.__dataclass_fields__)


def test_the_code_of_inpainting_runs():
    text = (DOCS / "inpainting.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    exec(compile(code, "inpainting.md", "exec"), {"__name__": "inpainting"})
