"""One PixArt block: dense, the authors' eager code, and `mod_block`, in one interleaved run."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field

import torch

from diffratio_kernels import __version__, kept_tokens
from diffratio_kernels.testing.memory import peak_bytes

from ..flops import block_flops
from .case import BlockCase, dense_name
from .timing import interleaved_medians


@dataclass
class BlockBenchmark:
    """What was measured: medians of interleaved runs in seconds, peak bytes of one call."""

    shape: dict[str, int]
    dtype: str
    threads: int
    device: str
    versions: dict[str, str]
    rounds: int
    rows: list[dict] = field(default_factory=list)

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return asdict(self)

    def row(self, name: str, kept: float) -> dict:
        """One measured row."""
        return next(row for row in self.rows if row["name"] == name and row["kept"] == kept)


@torch.inference_mode()
def run_block_benchmark(
    batch: int = 2,
    tokens: int = 1024,
    width: int = 1152,
    heads: int = 16,
    text: int = 120,
    kept: tuple[float, ...] = (1.0, 0.8, 0.5, 0.3),
    rounds: int = 15,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: bool = True,
) -> BlockBenchmark:
    """Latency, FLOPs and peak memory of a block at several kept ratios. No figure without a passed check.

    Raises RuntimeError if `mod_block` differs from the authors' mathematics by more than rounding.
    """
    case = BlockCase(batch, tokens, width, heads, text, dtype, device)
    keep = {ratio: kept_tokens(round(10 * ratio), tokens) for ratio in kept}
    _check(case, min(keep.values()), dtype)

    calls = {(dense_name(), 1.0): case.dense}
    for ratio, k in keep.items():
        calls["authors' eager", ratio] = lambda k=k: case.authors(k)
        calls["mod_block", ratio] = lambda k=k: case.ours(k)
        calls["route + gather + scatter", ratio] = lambda k=k: case.row_steps(k)
    seconds = interleaved_medians(calls, rounds, progress)

    result = BlockBenchmark(
        shape={"batch": batch, "tokens": tokens, "width": width, "heads": heads, "text": text},
        **benchmark_facts(dtype, device, rounds),
    )
    for (name, ratio), call in calls.items():
        result.rows.append(
            {
                "name": name,
                "kept": ratio,
                "seconds": seconds[name, ratio],
                "flops": batch * _flops(name, keep[ratio], tokens, width, text),
                "peak_bytes": peak_bytes(call, device),
            }
        )
    return result


def benchmark_facts(dtype: torch.dtype, device: str, rounds: int) -> dict:
    """What a `BlockBenchmark` says about a run besides the block's shape."""
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "versions": {
            "diffratio": __version__, "torch": torch.__version__, "python": platform.python_version()
        },
        "rounds": rounds,
    }  # fmt: skip


def _flops(name: str, keep: int, tokens: int, width: int, text: int) -> int:
    """True FLOPs of one sample; `mod_block` is given the projected text, the others project it."""
    if name == "route + gather + scatter":
        return 2 * tokens * width
    kept = None if name.endswith("dense") else keep
    return block_flops(tokens, kept, width, text, cache_text_kv=name == "mod_block")


def _check(case: BlockCase, keep: int, dtype: torch.dtype) -> None:
    ours, authors = case.ours(keep).float(), case.authors(keep).float()
    error = (ours - authors).abs().max().item()
    limit = 64 * torch.finfo(dtype).eps * authors.abs().max().item()
    if not error <= limit:
        raise RuntimeError(
            f"mod_block differs from the reference by {error:.3g} (limit {limit:.3g}): no timing"
        )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
