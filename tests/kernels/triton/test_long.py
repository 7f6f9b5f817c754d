"""Compiled kernels whose loops run several times: random shapes are short and never fill a pipeline.

Only where kernels are compiled: the interpreter has no pipelines.
"""

import pytest
import torch

from tools.guards.interpreter import interpreted
from tools.launchers.check import check_call
from tools.launchers.draw import Draw

pytestmark = pytest.mark.skipif(
    interpreted(), reason="the interpreter has no pipelines: for make ptx, or a GPU"
)


def attention(draw, head_dim, queries, keys=None):
    """Self-attention, or cross-attention to ragged text."""
    rows = sum(queries)
    if keys is None:
        query, key, value = draw.tensor(rows, 3, 2, head_dim).unbind(1)
    else:
        query = draw.tensor(rows, 2, head_dim)
        key, value = draw.tensor(sum(keys), 2, 2, head_dim).unbind(1)
    return {
        "query": query, "key": key, "value": value, "queries": queries, "keys": keys or queries, "spare": 0,
        "key_lengths": None, "scale": None, "grad_out": draw.tensor(rows, 2, head_dim),
    }  # fmt: skip


@pytest.mark.parametrize("head_dim", [40, 64, 72, 96, 128])
def test_attention_over_several_blocks(head_dim, dtype):
    check_call("attention", attention(Draw(head_dim, dtype), head_dim, [330, 130]), seed=head_dim)


@pytest.mark.parametrize("head_dim", [64, 72])
def test_attention_to_long_text(head_dim, dtype):
    check_call("attention", attention(Draw(head_dim, dtype), head_dim, [140, 20], [300, 260]), seed=head_dim)


@pytest.mark.parametrize("head_dim", [64, 72, 128])
def test_attention_of_two_bins_over_several_blocks(head_dim, dtype):
    draw, large, small = Draw(head_dim, dtype), [330, 130], [210, 0]
    query, key, value = draw.tensor(sum(large), 3, 2, head_dim).unbind(1)
    check_call(
        "two_bin_attention",
        {
            "keep_large": large, "keep_small": small, "query": query, "key": key, "value": value, "spare": 0,
            "scale": None, "grad_out": draw.tensor(sum(large) + sum(small), 2, head_dim),
        },
        seed=head_dim,
    )  # fmt: skip


INNER = 1152


def kept(draw, rows=140):
    """Two samples of 100 tokens, of which 140 rows are kept; D = 200."""
    index = torch.randperm(200, generator=draw.generator)[:rows].sort().values
    return {
        "index": index, "x": draw.tensor(2, 100, 200), "hidden": draw.tensor(rows, 200),
        "weight": draw.tensor(200, INNER, std=INNER**-0.5), "bias": draw.tensor(200),
        "gate": draw.tensor(2, 200),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["linear_gelu", "linear_gate_residual", "linear_scatter"])
def test_products_over_a_whole_width(name, dtype):
    draw = Draw(7, dtype)
    rows = draw.tensor(140, INNER)
    if name == "linear_gelu":
        arguments = {
            "rows": rows, "weight": draw.tensor(200, INNER, std=INNER**-0.5), "bias": draw.tensor(200),
            "keep_pre": True, "grad": draw.tensor(140, INNER),
            "next_weight": draw.tensor(INNER, 200, std=0.1), "pre": draw.tensor(140, 200),
        }  # fmt: skip
    elif name == "linear_gate_residual":
        arguments = kept(draw) | {"rows": rows, "gated": True, "tokens": 100}
    else:
        scores = {"logits": draw.tensor(2, 100, dtype=torch.float32), "rescale": "mlp", "score_scale": 2.0}
        arguments = kept(draw) | scores | {"inner": rows}
    check_call(name, arguments, seed=7)
