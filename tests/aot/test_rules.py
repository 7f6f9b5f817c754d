"""Every rule of the ahead-of-time gate fires, and only where it should."""

import pytest

from tools.aot.rules import broken

ROW = {
    "source": "triton", "kernel": "attention_fwd", "label": "d=72 self", "dtype": "bf16", "architecture": 80,
    "registers": 255, "stack": 0, "local": 0, "shared": 163 * 1024, "spills": 0,
    "wrong_descriptors": 0, "touched_in_flight": 0, "threads": 128,
    "occupancy": 0.0625, "mma_useful": 1.1111, "matrix": {"HMMA.16816": 160},
    "loads": {"16": 15, "4": 4}, "async": {"16": 30}, "stores": {"16": 5},
    "step": 400, "in_flight": 4, "waited_alone": 0,
}  # fmt: skip


def test_a_row_that_keeps_them_all():
    assert broken(ROW) == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spills": 2}, "spills 2"),
        ({"stack": 8}, "stack 8"),
        ({"local": 8}, "local 8"),
        ({"wrong_descriptors": 1}, "wrong_descriptors 1"),
        ({"touched_in_flight": 1}, "touched_in_flight 1"),
        ({"shared": 163 * 1024 + 1}, "shared memory"),
        ({"mma_useful": 128 / 72}, "80/72"),
        ({"mma_useful": 1.1251}, "80/72"),
        ({"label": "d=64 self"}, "64/64"),
        ({"kernel": "two_bin_attention_bwd_key", "async": {"8": 30}}, "16 bytes"),
        ({"async": {"8": 30}}, "16 bytes"),
        ({"loads": {"2": 1}}, "less than 4"),
        ({"waited_alone": 26}, "26 products"),
        ({"architecture": 90}, "blocks of a multiprocessor 1"),
        ({"architecture": 90, "occupancy": 0.1875, "in_flight": 0}, "no copies in flight"),
        ({"kernel": "gather_adaln_fwd", "registers": 65}, "65 registers"),
        ({"kernel": "gather_adaln", "source": "cuda", "registers": 65}, "65 registers"),
        ({"kernel": "qk_norm_rope_backward", "source": "cuda", "registers": 65}, "65 registers"),
        ({"kernel": "activation_backward", "source": "cuda", "registers": 65}, "65 registers"),
        ({"kernel": "gate_residual_bwd", "registers": 65}, "65 registers"),
        ({"kernel": "router_logits_fwd", "registers": 65}, "65 registers"),
        ({"kernel": "scatter_rescale_backward", "source": "cuda", "registers": 65}, "65 registers"),
    ],
)
def test_each_rule_fires(change, words):
    (found,) = broken(ROW | change)
    assert words in found


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": 90, "shared": 227 * 1024, "occupancy": 0.125},
        {"architecture": 90, "label": "d=128 self", "mma_useful": 1.0},
        {"architecture": 90, "kernel": "attention_bwd_key", "in_flight": 0},
        {"label": "d=40 cross", "mma_useful": 1.2},
        {"kernel": "gather_adaln", "registers": 64, "async": {}, "loads": {"2": 1}, "mma_useful": None},
        {"kernel": "two_bin_blend_backward", "registers": 65},
    ],
)
def test_no_rule_fires_where_it_should_not(change):
    assert broken(ROW | change) == []
