"""`make kernels` against the golden file: no figure of a shipped kernel gets worse unseen."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest

from tools.aot import kernels
from tools.aot.compare import by_key, regressions
from tools.aot.report import to_json
from tools.aot.rules import broken

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/kernels.json"
REGENERATE = "make kernels ARGS=--json > tests/golden/kernels.json"
# A third of what ships, every kernel of it; `make toolchains` compares all.
PART = (
    "from tools.aot import report, shipped\n"
    "from tests.aot.test_kernels import of_its_architecture\n"
    "shipped.DTYPES = {'bf16': shipped.DTYPES['bf16']}\n"
    "shipped.WIDTHS, shipped.HEADS = {1152: 4608}, {72: 16}\n"
    "def jobs(*asked):\n"
    "    return [job for job in shipped.jobs(*asked) if of_its_architecture(job.label, job.architecture)]\n"
    "report.jobs = jobs\n"
)


def run(*arguments: str, prepare: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, where Triton compiles; `prepare` runs before it."""
    code = f"{prepare}\nimport sys\nfrom tools.aot.kernels import main\nsys.exit(main())"
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=inherited | environment)


def of_its_architecture(label: str, architecture: int) -> bool:
    """Families' configurations, which are many, are each compiled for one of the architectures."""
    of_all = re.match(r"D=|d=|N=|$", label)
    return bool(of_all) or architecture == (80, 90)[crc32(label.encode()) % 2]


def part(rows: list[dict]) -> list[dict]:
    """The rows that PART compiles, and those of the native library."""
    left_out = re.compile(r"D=(?!1152\b)|d=(?!72\b)")
    return [
        row
        for row in rows
        if row["source"] == "cuda"
        or (
            row["dtype"] != "fp16"
            and not left_out.match(row["label"])
            and of_its_architecture(row["label"], row["architecture"])
        )
    ]


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_every_kernel_keeps_the_rules_and_its_golden_figures(golden):
    done = run("--json", prepare=PART)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert (found["broken"], done.returncode) == ([], 0)
    assert done.stderr == ""  # no bar where no terminal is
    assert {row["kernel"] for row in found["rows"]} == {row["kernel"] for row in golden["rows"]}
    lost = regressions(golden | {"rows": part(golden["rows"])}, found)
    assert not lost, "\n".join([*lost, f"If it is meant: {REGENERATE}"])


def test_the_golden_file_is_what_the_command_writes(golden):
    assert GOLDEN.read_text() == to_json(golden) + "\n"
    assert [row for row in golden["rows"] if broken(row)] == []
    assert len(by_key(golden)) == len(golden["rows"]) > 300
    assert {row["architecture"] for row in golden["rows"] if row["source"] == "cuda"} == {80, 90, 100}


def test_every_triton_kernel_that_is_launched_ships(golden):
    """On both architectures; bf16 and fp16 where a kernel has a dtype."""
    sources = (ROOT / "diffratio_kernels").rglob("*.py")
    launched = {found for path in sources for found in re.findall(r"\blaunch\(\s*_(\w+),", path.read_text())}
    compiled = {}
    for row in golden["rows"]:
        if row["source"] == "triton":
            compiled.setdefault(row["kernel"], set()).add((row["dtype"], row["architecture"]))
    assert set(compiled) == launched and len(launched) > 12
    every = {(dtype, architecture) for dtype in ("bf16", "fp16") for architecture in (80, 90)}
    untyped = {"row_map", "topk_select", "group_sums"}  # of indices, logits, and sums in fp32
    assert {kernel for kernel, seen in compiled.items() if seen != every} == untyped


def test_every_cuda_kernel_of_the_sources_is_in_the_golden_file(golden):
    sources = (ROOT / "csrc/include/diffratio").glob("*.cuh")
    written = {
        found
        for path in sources
        for found in re.findall(r"__global__.*?(\w+)_kernel\(", path.read_text(), re.S)
    }
    assert {row["kernel"] for row in golden["rows"] if row["source"] == "cuda"} == written


def test_a_regression_is_found(golden):
    def changed(**figures):
        rows = [row | figures if row["kernel"] == "attention_fwd" else row for row in golden["rows"]]
        return golden | {"rows": rows}

    count = sum(row["kernel"] == "attention_fwd" for row in golden["rows"])
    assert regressions(golden, golden) == []
    for figures in (
        {"spills": 1}, {"wrong_descriptors": 1}, {"touched_in_flight": 1}, {"registers": 256},
        {"shared": 10**6}, {"occupancy": 0.01}, {"async": {"8": 99}}, {"loads": {}},
        {"matrix": {"HMMA.16816": 10**6}}, {"in_flight": -1},
    ):  # fmt: skip
        found = regressions(golden, changed(**figures))
        assert len(found) == count and all(found[0].count(word) == 1 for word in ("before", "after"))
    assert regressions(golden, changed(spills=0, registers=8, occupancy=1.0)) == []
    fewer = golden | {"rows": golden["rows"][1:]}
    assert [words.split(": ")[1] for words in regressions(golden, fewer) + regressions(fewer, golden)] == [
        "lost",
        "new",
    ]
    newer = changed(registers=256) | {"toolchain": golden["toolchain"] | {"triton": "9.9"}}
    assert regressions(golden, newer) == []


def test_a_spilling_tile_fails_the_command():
    prepare = (
        "from tools.aot import shipped\n"
        "from diffratio_kernels._triton import tiles\n"
        "shipped.HEADS, shipped.DTYPES = {72: 16}, {'bf16': shipped.DTYPES['bf16']}\n"
        "tiles.ATTENTION_TILES['attention_fwd'][80][96] = (128, 128, 4, 2)\n"
    )
    done = run("--json", "--arch", "80", "--kernel", "attention_fwd", prepare=prepare)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and len(found["rows"]) == 3
    assert all(row["spills"] > 0 and row["stack"] > 0 for row in found["rows"])
    assert any("attention_fwd d=72 self bf16 sm_80: spills" in words for words in found["broken"])


def test_memory_that_is_not_aligned_fails_the_command():
    """q, k and v one element into their memory: what a launcher would pass is what is compiled."""
    prepare = (
        "import torch\n"
        "from tools.aot import shipped\n"
        "empty = shipped._empty\n"
        "def shifted(*shape, dtype):\n"
        "    return empty(1 + torch.Size(shape).numel(), dtype=dtype)[1:].view(shape)\n"
        "shipped.HEADS, shipped.DTYPES = {72: 16}, {'bf16': shipped.DTYPES['bf16']}\n"
        "shipped._empty = shifted\n"
    )
    done = run("--arch", "90", "--kernel", "attention_fwd", prepare=prepare)
    assert done.returncode == 1
    assert "no asynchronous loads of 16 bytes" in done.stdout and "loads of less than 4 bytes" in done.stdout


@pytest.mark.parametrize(
    "arguments, words", [(["--arch", "70"], "invalid choice: 70"), ([], "TRITON_INTERPRET is set")]
)
def test_what_cannot_be_done_is_said(arguments, words, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments])
    with pytest.raises(SystemExit, match="^2$"):
        kernels.main()
    said = capsys.readouterr()
    assert words in said.err and said.out == ""


def test_a_name_that_no_kernel_has_is_said():
    done = run("--kernel", "no_such_kernel")
    assert done.returncode == 2 and "no_such_kernel" in done.stderr and done.stdout == ""


def test_without_triton_the_command_says_so():
    done = run(prepare="import sys\nsys.modules['triton'] = None")
    assert done.returncode == 2 and "triton is not installed" in done.stderr
