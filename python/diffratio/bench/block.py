"""One PixArt block: dense in diffusers, the authors' eager code, and `mod_block`, in one interleaved run."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field

import torch
from diffusers.models.attention import BasicTransformerBlock

from diffratio_kernels import __version__, gather_adaln, kept_tokens, mod_block, route, scatter_rescale
from diffratio_kernels.testing.memory import peak_bytes

from ..flops import block_flops
from .eager import authors_block
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


class _Case:
    """The tensors of one block and the ways to run it."""

    def __init__(self, batch: int, tokens: int, width: int, heads: int, text: int, dtype, device):
        torch.manual_seed(0)
        self.heads, self.tokens = heads, tokens
        self.block = (
            BasicTransformerBlock(
                width,
                heads,
                width // heads,
                cross_attention_dim=width,
                attention_bias=True,
                activation_fn="gelu-approximate",
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                norm_eps=1e-6,
            )
            .eval()
            .to(device, dtype)
        )
        draw = {"device": device, "dtype": dtype}
        self.x = torch.randn(batch, tokens, width, **draw)
        self.timestep = torch.randn(batch, 6 * width, **draw) * 0.1
        self.text = torch.randn(batch, text, width, **draw)
        self.router_weight = torch.randn(width, **draw) * 0.02
        self.modulation = self.block.scale_shift_table[None] + self.timestep.view(batch, 6, -1)
        attn = self.block.attn1
        self.qkv_weight = torch.cat([attn.to_q.weight, attn.to_k.weight, attn.to_v.weight])
        self.qkv_bias = torch.cat([attn.to_q.bias, attn.to_k.bias, attn.to_v.bias])
        # Text keys and values do not depend on the timestep: sampling computes them once.
        cross = self.block.attn2
        self.context_kv = torch.stack([cross.to_k(self.text), cross.to_v(self.text)], dim=2)

    def dense(self):
        return self.block(self.x, timestep=self.timestep, encoder_hidden_states=self.text)

    def authors(self, keep: int):
        return authors_block(self.block, self.x, self.timestep, self.text, self.router_weight, keep)

    def ours(self, keep: int):
        attn, cross, mlp = self.block.attn1, self.block.attn2, self.block.ff.net
        return mod_block(
            self.x,
            self.router_weight,
            keep,
            self.modulation,
            self.qkv_weight,
            self.qkv_bias,
            attn.to_out[0].weight,
            attn.to_out[0].bias,
            mlp[0].proj.weight,
            mlp[0].proj.bias,
            mlp[2].weight,
            mlp[2].bias,
            self.heads,
            context_kv=self.context_kv,
            cross_q_weight=cross.to_q.weight,
            cross_q_bias=cross.to_q.bias,
            cross_out_weight=cross.to_out[0].weight,
            cross_out_bias=cross.to_out[0].bias,
        )

    def row_steps(self, keep: int):
        """Routing, gather + adaLN and scatter of one block: what routing adds around the products."""
        shift1, scale1, _, _, _, gate2 = self.modulation.unbind(1)
        index, _, logits = route(self.x, self.router_weight, keep)
        rows, normed = gather_adaln(self.x, index, shift1, scale1)
        return scatter_rescale(self.x, index, rows, normed, gate2, logits)


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
    case = _Case(batch, tokens, width, heads, text, dtype, device)
    keep = {ratio: kept_tokens(round(10 * ratio), tokens) for ratio in kept}
    _check(case, min(keep.values()), dtype)

    calls = {("diffusers dense", 1.0): case.dense}
    for ratio, k in keep.items():
        calls["authors' eager", ratio] = lambda k=k: case.authors(k)
        calls["mod_block", ratio] = lambda k=k: case.ours(k)
        calls["route + gather + scatter", ratio] = lambda k=k: case.row_steps(k)
    seconds = interleaved_medians(calls, rounds, progress)

    result = BlockBenchmark(
        shape={"batch": batch, "tokens": tokens, "width": width, "heads": heads, "text": text},
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if device == "cuda" else _processor(),
        versions={"diffratio": __version__, "torch": torch.__version__, "python": platform.python_version()},
        rounds=rounds,
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


def _flops(name: str, keep: int, tokens: int, width: int, text: int) -> int:
    """True FLOPs of one sample; `mod_block` is given the projected text, the others project it."""
    if name == "route + gather + scatter":
        return 2 * tokens * width
    kept = None if name == "diffusers dense" else keep
    return block_flops(tokens, kept, width, text, cache_text_kv=name == "mod_block")


def _check(case: _Case, keep: int, dtype: torch.dtype) -> None:
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
