"""The tensors of one block and the ways to run it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffratio.evaluation.flops import Cost, step_cost
from diffratio_kernels import adaln, gate_residual, gather_adaln, route, scatter_rescale
from diffratio_kernels.testing.cases import ModBlockCase

from ..harness.options import Options
from ..peers.plain import PlainBlock


def has_diffusers() -> bool:
    """Whether its blocks can be imported: of a copied package the requirements may be missing."""
    try:
        import diffusers.models.attention  # noqa: F401
    except ImportError:
        return False
    return True


def dense_block(width: int, heads: int) -> nn.Module:
    """PixArt's block: that of diffusers or, where it is not installed, the same in plain PyTorch."""
    if not has_diffusers():
        return PlainBlock(width, heads)
    from diffusers.models.attention import BasicTransformerBlock

    return BasicTransformerBlock(
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


def dense_name() -> str:
    """What the dense baseline is called in results."""
    return "diffusers dense" if has_diffusers() else "plain torch dense"


def cost_of(operator: str, options: Options, keep: int) -> Cost:
    """The work of one call of an operator, by the cost table; the small of two bins keeps half as much."""
    sizes = {"batch": options.batch, "itemsize": options.dtype.itemsize, "kept_small": keep // 2}
    return step_cost(operator, options.transformer, keep, **sizes)


def operator_case(options: Options, keep: int) -> ModBlockCase:
    """What the calls of single operators are drawn from: a block with the MLP of PixArt."""
    heads, shape = options.heads, options.transformer
    return ModBlockCase(
        seed=0,
        batch=options.batch,
        tokens=options.tokens,
        keep=(keep,),
        dtype=options.dtype,
        heads=heads,
        head_dim=options.width // heads,
        hidden=shape.mlp_width,
        text=options.text,
    )


class BlockCase:
    """A block with random weights and inputs of its own: B samples of N tokens, M text tokens, a router."""

    def __init__(self, options: Options, seed: int = 0):
        torch.manual_seed(seed)
        batch, tokens, width, text = options.batch, options.tokens, options.width, options.text
        device, dtype = options.device, options.dtype
        self.heads, self.tokens = options.heads, tokens
        self.first_rows: dict[int, Tensor] = {}
        self.block = dense_block(width, options.heads).eval().requires_grad_(False).to(device, dtype)
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

    def dense(self) -> Tensor:
        return self.block(self.x, timestep=self.timestep, encoder_hidden_states=self.text)

    def arguments(self, keep: int) -> dict:
        """Those of `mod_block`, by name."""
        attn, cross, mlp = self.block.attn1, self.block.attn2, self.block.ff.net
        return {
            "x": self.x,
            "router_weight": self.router_weight,
            "keep": [keep],
            "modulation": self.modulation,
            "qkv_weight": self.qkv_weight,
            "qkv_bias": self.qkv_bias,
            "out_weight": attn.to_out[0].weight,
            "out_bias": attn.to_out[0].bias,
            "fc1_weight": mlp[0].proj.weight,
            "fc1_bias": mlp[0].proj.bias,
            "fc2_weight": mlp[2].weight,
            "fc2_bias": mlp[2].bias,
            "num_heads": self.heads,
            "context_kv": self.context_kv,
            "cross_q_weight": cross.to_q.weight,
            "cross_q_bias": cross.to_q.bias,
            "cross_out_weight": cross.to_out[0].weight,
            "cross_out_bias": cross.to_out[0].bias,
        }

    def row_steps(self, keep: int) -> Tensor:
        """Routing, gather + adaLN and scatter of one block."""
        shift1, scale1, _, _, _, gate2 = self.modulation.unbind(1)
        index, _, logits = route(self.x, self.router_weight, keep)
        rows, normed = gather_adaln(self.x, index, shift1, scale1)
        return scatter_rescale(self.x, index, rows, normed, gate2, logits)

    def unrouted_steps(self, keep: int) -> Tensor:
        """The same steps of a dense block with `keep` tokens: adaLN, gate and residual."""
        shift1, scale1, _, _, _, gate2 = self.modulation.unbind(1)
        batch, tokens, width = self.x.shape
        if keep not in self.first_rows:
            index = torch.arange(batch * tokens, device=self.x.device)
            self.first_rows[keep] = index.view(batch, tokens)[:, :keep].flatten()
        index, rows = self.first_rows[keep], self.x.view(-1, width)[: batch * keep]
        normed = adaln(rows, index, tokens, shift1, scale1)
        return gate_residual(rows, normed, gate2, index, tokens)


@dataclass(frozen=True)
class Cases:
    """Seed -> a case of its own."""

    of: type[BlockCase]
    options: Options

    def __call__(self, seed: int) -> BlockCase:
        return self.of(self.options, seed)
