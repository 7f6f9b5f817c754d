"""Fixed tiles per kernel, architecture and width: nothing is tuned at run time.

They were chosen from the ahead-of-time report (no spills, 16-byte asynchronous loads, occupancy); no GPU has
measured them yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

# kernel: {architecture: {held width of a head: (queries, keys, warps, stages)}}
ATTENTION_TILES = {
    "attention_fwd": {
        80: {96: (64, 64, 4, 3), 128: (128, 64, 8, 2), 256: (32, 32, 4, 2)},
        90: {96: (128, 128, 8, 2), 128: (128, 64, 8, 2), 256: (128, 64, 8, 2)},
    },
    "attention_bwd_query": {
        80: {96: (64, 32, 4, 2), 128: (32, 32, 4, 2), 256: (16, 32, 4, 2)},
        90: {96: (64, 64, 4, 2), 128: (64, 64, 4, 2), 256: (128, 32, 8, 2)},
    },
    "attention_bwd_key": {
        80: {96: (32, 64, 4, 2), 128: (32, 32, 4, 2), 256: (32, 32, 4, 2)},
        90: {96: (64, 64, 4, 2), 128: (32, 64, 4, 2), 256: (64, 32, 8, 2)},
    },
    "two_bin_attention": {
        80: {96: (64, 64, 4, 3), 128: (128, 64, 8, 2)},
        90: {80: (128, 128, 8, 2), 128: (128, 64, 8, 2)},
    },
    "two_bin_attention_bwd_query": {
        80: {96: (64, 32, 4, 2), 128: (16, 64, 4, 2)},
        90: {128: (64, 64, 4, 2)},
    },
    "two_bin_attention_bwd_key": {
        80: {48: (32, 64, 4, 2), 80: (32, 128, 8, 2), 96: (32, 64, 4, 2), 128: (32, 32, 4, 2)},
        90: {80: (64, 64, 4, 2), 96: (32, 64, 4, 2), 128: (32, 128, 8, 2)},
    },
}
# kernel: {architecture: (rows, columns, inner dimension, row tiles in a group, warps, stages)}
PRODUCT_TILES = {
    "linear_gelu": {80: (128, 128, 32, 8, 8, 4), 90: (128, 128, 64, 8, 8, 3)},
    "linear_gelu_backward": {80: (128, 64, 32, 8, 8, 3), 90: (128, 64, 64, 8, 8, 3)},
    "linear_gate_residual": {80: (128, 128, 32, 8, 8, 4), 90: (128, 128, 64, 8, 8, 3)},
    "linear_scatter": {80: (128, 128, 32, 8, 8, 4), 90: (128, 128, 64, 8, 8, 3)},
}
# fp32 products are exact, not TF32: no matrix units, so small tiles. Attention spills even so; "auto" leaves
# it to torch.
ATTENTION_FP32 = {128: (32, 32, 4, 1), 256: (16, 16, 4, 1)}
PRODUCT_FP32 = (32, 32, 32, 8, 4, 1)
LARGEST_HEAD_DIM = 256
LARGEST_HEAD_DIM_OF_TWO_BINS = 128  # the backward pass holds incoming gradients of both in registers

assumed_architecture = 80
"""Compute capability taken for tensors that are not on a GPU (interpreter, ahead-of-time compilation)."""


def architecture(device: torch.device) -> int:
    """Which table a device takes: 90 for sm_90 and sm_100, 80 for the others (less shared memory)."""
    if device.type != "cuda":
        return assumed_architecture
    return 90 if torch.cuda.get_device_capability(device)[0] in (9, 10) else 80


def attention_tiles(kernel: str, like: Tensor, held: int) -> dict:
    """Blocks of queries and keys, warps and stages for heads that are held as `held` columns."""
    fp32 = like.dtype == torch.float32
    table = ATTENTION_FP32 if fp32 else ATTENTION_TILES[kernel][architecture(like.device)]
    names = ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")
    return dict(zip(names, table[min(width for width in table if width >= held)], strict=True))


def product_tiles(kernel: str, like: Tensor) -> dict:
    """Blocks of rows, columns and the inner dimension, row tiles in a group, warps and stages."""
    fp32 = like.dtype == torch.float32
    tiles = PRODUCT_FP32 if fp32 else PRODUCT_TILES[kernel][architecture(like.device)]
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP", "num_warps", "num_stages")
    return dict(zip(names, tiles, strict=True))
