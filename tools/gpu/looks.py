"""What `make gpu` runs: looks, each one command on a GPU machine, and their steps.

Limits and predictions are seconds on an H100-class GPU with 16 CPU cores. Known from the first run on an
H200: 444 operator tests took 42 s, 244 block tests in three dtypes 99 s, starting the machine and copying
30 s. The other predictions are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

START = 30
"""Seconds that a rented machine takes to start and to copy the checkout there and the archive back."""
TIME_IS_UP, NOT_AVAILABLE = 75, 77
"""Exit codes of a step that did what its time allowed, and of one whose tool or device is not there."""
GPU = "tests/gpu/test_"
"""How the files of tests begin that are skipped without a GPU."""


@dataclass(frozen=True)
class Step:
    """One process of a look.

    command: {python} is the interpreter, {folder} that of the look's results, {outcomes} where a test run
    writes what each test came to, {parallel} pytest-xdist on all cores. rehearsal: the command of a dry run
    on the CPU, None where that is the same one. limit: seconds that it has for sure; what the steps before it
    left over comes on top. With limit 0 it runs in that only. predicted: seconds; a step that has less is not
    started. essential: without it no other step is started. needs: a package without which it cannot run.
    """

    name: str
    what: str
    command: str
    limit: float
    predicted: float
    rehearsal: str | None = None
    essential: bool = False
    needs: str | None = None


@dataclass(frozen=True)
class Look:
    """Steps of one command, in order; they end after the sum of their limits."""

    what: str
    steps: tuple[Step, ...]

    @property
    def limit(self) -> float:
        return sum(step.limit for step in self.steps)

    @property
    def predicted(self) -> float:
        return sum(step.predicted for step in self.steps)


def tests(name: str, what: str, limit: float, predicted: float, words: str, parallel: bool = True) -> Step:
    """A test run. words: files, and what selects from them. Tests that are not skipped without a GPU would
    run for long: a rehearsal only collects them."""
    command = "{python} -m pytest -p tools.gpu.outcomes --outcomes {outcomes} "
    command += f"--continue-on-collection-errors {'{parallel} ' * parallel}{words}"
    skipped = all(word.startswith(GPU) for word in words.split() if word.startswith("tests/"))
    return Step(name, what, command, limit, predicted, None if skipped else f"{command} --collect-only")


TINY = {"batch": (1,), "tokens": 16, "kept": (0.5,), "width": 32, "heads": 2, "text": 5, "layers": 2,
        "steps": 2, "rounds": 1, "compile_mode": "none"}  # fmt: skip
"""Options of `diffratio bench` in a dry run."""
SUITES = {
    "operators": ("operator", {"batch": (16,), "kept": (0.5,), "text": 300}),
    "block": ("block", {"batch": (16,), "kept": (1.0, 0.5, 0.3), "text": 300, "compile_mode": "default"}),
}
"""Step -> suite and options of `diffratio bench`: what warm_up.py compiles for the steps after it."""


def bench(name: str, what: str, limit: float, predicted: float, suite: str, **options: Any) -> Step:
    """A suite of `diffratio bench`."""
    needs = "diffusers" if suite in ("family", "model", "sampling") else None
    command, rehearsal = (bench_command(suite, each) for each in (options, TINY))
    return Step(name, what, command, limit, predicted, rehearsal, needs=needs)


def bench_command(suite: str, options: dict[str, Any]) -> str:
    words = ["{python} -m diffratio bench", suite]
    for option, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{option.replace('_', '-')} {each}" for each in values]
    return " ".join([*words, "--out {folder}"])


DEVICE = Step(
    "device",
    "a GPU, its versions, the library that was brought along",
    "{python} -m tools.gpu.device --facts {folder}/machine.json",
    15,
    9,
    essential=True,
)
INTERPRETED, EXECUTED = "env TRITON_INTERPRET=1 ", "env DIFFRATIO_PTX=90 "
"""Before a rehearsal whose Triton kernels run on the CPU: in the interpreter, or compiled, in tools/ptx."""

CORRECT = (
    DEVICE,
    Step("library", "the native library with its CUDA kernels: loads, or is built",
         "{python} -m tools.gpu.build", 80, 6),
    Step("probe", "one block in bf16 by every backend against fp64",
         "{python} -m tools.gpu.probe", 30, 25, EXECUTED + "{python} -m tools.gpu.probe"),
    tests("attention", "every attention back end, and which tokens are kept", 30, 22,
          f"{GPU}attention_backends.py {GPU}selection.py"),
    tests("operators", "every operator and the MLP in bf16 and fp16", 30, 25,
          f"{GPU}operators.py {GPU}mlp.py -k 'not float32'"),
    tests("blocks", "blocks of one bin and of two in bf16, also under autocast", 50, 45,
          f"{GPU}block.py {GPU}autocast.py -k 'bfloat16 or autocast'"),
    tests("graphs", "CUDA graphs of every operator, of four blocks and of a model in diffusers", 35, 33,
          f"{GPU}graphs.py {GPU}bench.py {GPU}model_graphs.py"),
)  # fmt: skip

SPEED = (
    DEVICE,
    bench("peaks", "what the machine gives: product, copy, launch", 15, 10, "peak"),
    Step("warm-up", "compiles what the next steps launch, one process per core",
         "{python} -m tools.gpu.warm_up", 50, 40),
    Step("attention-sweep", "attention of libraries and ten tiles of ours, in CUDA graphs",
         "{python} -m tools.tune.attention_sweep --out {folder}", 45, 35),
    bench("operators", "every operator and product, 16 samples of 1024 tokens, half of them kept", 40, 35,
          SUITES["operators"][0], **SUITES["operators"][1]),
    bench("block", "one block, 16 samples of 1024 tokens, beside compiled peers", 65, 50,
          SUITES["block"][0], **SUITES["block"][1]),
    Step("tune", "attention beside every library, and tiles, as far as time goes",
         "{python} -m tools.tune.tune --minutes 0.5 --table {folder}/tiles.json", 40, 36,
         INTERPRETED + "{python} -m tools.tune.tune --table {folder}/tiles.json"),
    Step("memcheck", "compute-sanitizer memcheck, if time is left",
         "{python} -m tools.gpu.sanitize memcheck", 0, 40),
)  # fmt: skip

SECOND = (
    DEVICE,
    tests("fp32", "operators and the MLP in fp32, blocks in fp32 and fp16", 100, 70,
          f"{GPU}operators.py {GPU}mlp.py {GPU}block.py "
          "-k 'float32 or (block and float16 and not bfloat16)'"),
    replace(
        tests("kernels", "the Triton kernels' own tests, compiled", 200, 180,
              "tests/kernels/triton --ignore tests/kernels/triton/test_large_offsets.py"),
        rehearsal=EXECUTED + "{python} -m pytest -p tools.gpu.outcomes --outcomes {outcomes} "
        "tests/kernels/triton/test_products.py::test_products_stay_within_the_error_budget[0]",
    ),
    tests("repeat", "50 runs of 30 configurations, the same bits", 50, 40, f"{GPU}repeat.py"),
    tests("streams", "side streams, two streams at once, and a launch on the wrong one", 40, 30,
          f"{GPU}streams.py", parallel=False),
    tests("memory", "no growth in 200 iterations; peak memory", 30, 20, f"{GPU}memory.py", parallel=False),
    tests("large", "more than 2^31 elements", 45, 40,
          f"{GPU}large.py tests/kernels/triton/test_large_offsets.py", parallel=False),
    tests("compile", "torch.compile with inductor, and with its CUDA graphs", 90, 80, f"{GPU}compile.py"),
)  # fmt: skip

THIRD = (
    DEVICE,
    bench("training", "forward and backward with two bins, 16 samples of 1024 tokens", 110, 90, "training",
          batch=(16,), text=300, kept=(0.5, 0.7)),
    bench("model", "28 layers at 1024 tokens, 1 and 4 samples, compiled too", 240, 200, "model",
          batch=(1, 4), text=300, kept=(1.0, 0.5, 0.3)),
    bench("sampling", "20 steps with guidance at 1024 tokens, with cached steps and without", 200, 160,
          "sampling", batch=(1,), text=300, kept=(0.5,)),
)  # fmt: skip


def sanitizer(tool: str) -> Step:
    command = f"{{python}} -m tools.gpu.sanitize {tool}"
    return Step(tool, f"compute-sanitizer {tool}", command, 480, 90)


PAPER = "{python} -m benchmarks.a100 --out {folder}"
"""What `python -m benchmarks.a100` without words measures takes hours: here the small batch in bf16."""

REST = (
    DEVICE,
    *map(sanitizer, ("memcheck", "racecheck", "initcheck", "synccheck")),
    tests("host", "what needs no GPU, with this torch and this Python", 480, 60,
          "tests/reference tests/kernels tests/testing tests/ops tests/blocks --ignore tests/kernels/triton "
          "--ignore tests/reference/test_diffusers_block.py --ignore tests/ops/properties/test_backends.py"),
    Step("tune", "attention beside every library, and every tile",
         "{python} -m tools.tune.tune --minutes 6.5 --table {folder}/tiles.json", 480, 400,
         INTERPRETED + "{python} -m tools.tune.tune --table {folder}/tiles.json"),
    bench("block-16x1024", "one block, beside peers compiled with every tuning", 480, 360, "block",
          batch=(16,), text=300, compile_mode="max-autotune-no-cudagraphs"),
    bench("block-2x4096", "one block, one image of 4096 tokens under guidance", 480, 240, "block",
          batch=(2,), tokens=4096, text=300),
    bench("operators-16x1024", "every operator and product", 480, 180, "operator", batch=(16,), text=300),
    bench("operators-2x4096", "every operator and product", 480, 180, "operator",
          batch=(2,), tokens=4096, text=300),
    bench("block-1024", "one block, 1 to 128 samples", 480, 180, "block",
          batch=(1, 2, 4, 64, 128), text=300, compile_mode="none"),
    bench("block-4096", "one block, 1 to 64 samples", 480, 240, "block",
          batch=(1, 4, 16, 64), tokens=4096, text=300, compile_mode="none"),
    bench("block-256", "one block, 128 samples", 480, 60, "block",
          batch=(128,), tokens=256, text=300, compile_mode="none"),
    bench("training-16x1024", "two bins, every kept part", 480, 180, "training", batch=(16,), text=300),
    bench("training-2x4096", "two bins, every kept part", 480, 180, "training",
          batch=(2,), tokens=4096, text=300),
    bench("model-1024", "28 layers, 1 to 16 samples, compiled too", 480, 360, "model",
          batch=(1, 2, 4, 16), text=300),
    bench("model-1024-large", "28 layers, 64 and 128 samples", 480, 300, "model",
          batch=(64, 128), text=300, compile_mode="none"),
    bench("model-4096", "28 layers, 1 to 16 samples", 480, 420, "model",
          batch=(1, 2, 4, 16), tokens=4096, text=300, compile_mode="none"),
    bench("model-4096-64", "28 layers, 64 samples", 480, 240, "model",
          batch=(64,), tokens=4096, kept=(1.0, 0.7, 0.5), rounds=3, compile_mode="none", text=300),
    bench("model-4096-128", "28 layers, 128 samples", 480, 300, "model",
          batch=(128,), tokens=4096, kept=(1.0, 0.5), rounds=3, compile_mode="none", text=300),
    bench("sampling-1024", "20 steps with guidance", 480, 300, "sampling", batch=(1, 4), text=300),
    bench("sampling-4096", "20 steps with guidance", 480, 300, "sampling",
          batch=(1,), tokens=4096, text=300),
    Step("paper-tables", "the paper's tables and figure 3, 16 images in bf16",
         f"{PAPER} --step figure3-bf16 --step table1-bf16-16 --step table2-512-bf16-16", 480, 240,
         f"{PAPER} --device cpu --tiny --rounds 1 --step table1-fp32-1", needs="diffusers"),
)  # fmt: skip

LOOKS = {
    "correct": Look("first look: is it right? under 5 minutes", CORRECT),
    "speed": Look("first look: how fast? under 5 minutes", SPEED),
    "second": Look("fp32, kernels, streams, repetition, memory, large sizes, compile; 10 minutes", SECOND),
    "third": Look("training, model and sampling; 10 minutes", THIRD),
    "rest": Look("sanitizers and the wide grid of latencies, on a machine of one's own; over an hour", REST),
}
