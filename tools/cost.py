"""docs/cost.md: what the presets of `diffratio flops` and `diffratio plan` cost and save, as it is counted.

python -m tools.cost          # prints the page; `--write` puts it where it belongs
"""

from __future__ import annotations

import sys

from diffratio.evaluation.flops.counted import count_preset
from diffratio.evaluation.models import PRESETS
from diffratio.progress import progress_bar

from .pages import print_or_write
from .sources import ROOT

PAGE = ROOT / "docs" / "cost.md"
KEPT = (7, 5, 3)
TOP = """# What it costs and saves
One forward of one sample, counted on the models themselves: they are made on torch's meta device with their
public configurations and run there, dense and routed, and every operator is noted. FLOPs are those of
`torch.utils.flop_counter`, attention included; a model's are with all that stands around the blocks. Memory
is what the block that takes most has alive at once in bf16, beside the weights and what it is given; blocks
run by operators then, without the shared buffers of inference, so it is an upper bound. Nothing of this is a
measured time: `diffratio plan --preset NAME` predicts times, `diffratio bench family` measures blocks.

Written by `python -m tools.cost --write`; a test counts some rows again.

"""
COLUMNS = (
    "preset", "routed blocks", "tokens + text", "weights, GiB", "dense, TFLOP",
    "of these FLOPs with 70, 50, 30 % kept", "a block, GiB", "with 50 % kept",
)  # fmt: skip
TOP += f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}\n"


def row(name: str) -> str:
    """Of a preset."""
    preset = PRESETS[name]
    count = count_preset(preset, KEPT)
    dense, layers = count.flops(), len(count.blocks)
    shares = ", ".join(f"{count.flops(n) / dense:.2f}" for n in KEPT)
    weights, block, half = (
        size / 2**30 for size in (count.weights, count.peak(), count.peak([[5]] * layers))
    )
    return (
        f"| `{name}` | {layers} | {count.tokens} + {preset.size.text} | {weights:.1f} | {dense / 1e12:.1f} "
        f"| {shares} | {block:.2f} | {half:.2f} |"
    )


def page() -> str:
    """The whole page."""
    return TOP + "\n".join(map(row, progress_bar(list(PRESETS), desc="presets", unit="preset"))) + "\n"


if __name__ == "__main__":
    sys.exit(print_or_write(__doc__, PAGE, page))
