"""How much of attention's matrix work is padding: blocks of queries and keys are whole.

python -m tools.tune.padding
"""

from __future__ import annotations

import argparse
from math import ceil

from diffratio_kernels._triton.tiles import attention_tile

from .subjects import HELD

TOKENS, TEXT = 1024, (120, 300)
KEEP = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
SEQUENCES = 256
"""Heads times samples: 16 of each."""


def padded_work(architecture: int, queries: int, keys: int, held: int = HELD) -> float:
    """Matrix work of attention over what queries and keys need, with the tile that this shape takes."""
    block_m, block_n, *_ = attention_tile("attention_fwd", architecture, held, queries, keys, SEQUENCES)
    blocks = ceil(queries / block_m) * ceil(keys / block_n)
    return blocks * block_m * block_n / (queries * keys)


def table(architecture: int) -> str:
    """A row per kept ratio: self-attention of its tokens, and their attention to text."""
    heads = ["keep", "rows", "tile", "self", *(f"{text} keys" for text in TEXT)]
    rows = [heads, ["---"] * len(heads)]
    for keep in KEEP:
        count = ceil(round(keep * TOKENS, 6))
        tile = attention_tile("attention_fwd", architecture, HELD, count, count, SEQUENCES)
        work = [f"{padded_work(architecture, count, keys):.2f}" for keys in (count, *TEXT)]
        rows.append([str(keep), str(count), " x ".join(map(str, tile[:2])), *work])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for architecture in (80, 90):
        print(f"sm_{architecture}, {TOKENS} tokens, heads held as {HELD} columns\n\n{table(architecture)}\n")


if __name__ == "__main__":
    main()
