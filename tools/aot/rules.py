"""What no shipped kernel may do, whatever it did before."""

from __future__ import annotations

from .occupancy import MULTIPROCESSORS, blocks

NONE_OF = ("spills", "stack", "local", "wrong_descriptors", "touched_in_flight")
MOST_REGISTERS = 64
# How names of row kernels begin. Those of two bins read the rows of two streams at once, and may take more.
FEW_REGISTERS = (
    "gather_adaln", "gate_residual", "scatter_rescale", "qk_norm_rope", "activation", "router_logits",
)  # fmt: skip
# Columns that a head may be held as: 64 + 16 for 72, 32 + 16 for 40, as many as it has for the others.
HELD = {72: 80, 40: 48}

BLOCKS = "blocks of a multiprocessor"
PIPELINED = ("attention_fwd", "attention_bwd_query", "two_bin_attention")
"""On sm_90 with heads of 72, two blocks overlap products with exponentials, and copies go on beside both."""


def broken(row: dict) -> list[str]:
    """The rules that a row of the report breaks, in words."""
    found = [f"{figure} {row[figure]}, must be 0" for figure in NONE_OF if row[figure]]
    limit = MULTIPROCESSORS[row["architecture"]].shared_per_block
    if row["shared"] > limit:
        found.append(f"{row['shared']} bytes of shared memory, must be at most {limit}")
    if "attention" in row["kernel"]:
        found += _broken_by_attention(row)
    if row["kernel"].startswith(FEW_REGISTERS) and row["registers"] > MOST_REGISTERS:
        found.append(f"{row['registers']} registers, must be at most {MOST_REGISTERS}")
    return found


def _broken_by_attention(row: dict) -> list[str]:
    found = []
    head_dim = int(row["label"].split()[0].removeprefix("d="))
    held = HELD.get(head_dim, head_dim)
    if row["mma_useful"] > held / head_dim + 1e-3:
        found.append(
            f"matrix work {row['mma_useful']:.3f} times the useful, must be at most {held}/{head_dim}"
        )
    if not row["async"].get("16"):
        found.append("no asynchronous loads of 16 bytes")
    if row["waited_alone"]:
        found.append(f"{row['waited_alone']} products, each waited for before the next")
    if row["architecture"] == 90 and head_dim == 72 and row["kernel"] in PIPELINED:
        if blocks(row) < 2:
            found.append(f"{BLOCKS} {blocks(row)}, must be at least 2")
        if row["in_flight"] < 1:
            found.append("no copies in flight beside the products")
    if {"1", "2"} & (row["loads"].keys() | row["async"].keys()):
        found.append("loads of less than 4 bytes")
    return found
