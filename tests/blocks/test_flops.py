"""torch's FlopCounterMode: an operator counts as its eager steps, and no step counts twice."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import diffratio_kernels as dk
import diffratio_kernels.flops
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase

BLOCKS = {
    "cross": (dk.mod_block, ModBlockCase(seed=0, keep=(13, 9))),
    "no text": (dk.mod_block, ModBlockCase(seed=0, text=None)),
    "ragged text": (dk.mod_block, ModBlockCase(seed=0, ragged_text=True, biases=False)),
    "nothing kept": (dk.mod_block, ModBlockCase(seed=0, keep=(0,))),
    "two bins": (dk.two_bin_block, TwoBinCase(seed=0, keep=(13,), keep_small=(5,))),
    "two bins, no text": (dk.two_bin_block, TwoBinCase(seed=0, keep=(20,), keep_small=(5,), text=None)),
}


def flops(function, *args, **kwargs):
    """The count of a call; torch does not know the CPU's fused attention, so attention runs as products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops(), counter.get_flop_counts()["Global"]


def tracked(arguments):
    return {
        name: t.detach().requires_grad_() if torch.is_tensor(t) and t.is_floating_point() else t
        for name, t in arguments.items()
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_counts_the_same_with_and_without_gradients(name):
    block, case = BLOCKS[name]
    attention = "reference" if block is dk.two_bin_block else "sdpa"  # which calls the fused one itself
    eager, parts = flops(block, **tracked(case.arguments()), attention=attention)
    assert getattr(torch.ops.diffratio, block.__name__) not in parts
    for backend in ("reference", "auto"):
        total, parts = flops(block, **case.arguments(), backend=backend)
        assert total == eager
        assert list(parts) == [getattr(torch.ops.diffratio, block.__name__)]  # nothing inside of it again


def packed(counts, longest=None):
    offsets = torch.tensor([0, *counts]).cumsum(0).int()
    rows = [torch.randn(sum(counts), 2, 8) for _ in range(3)]
    return *rows, offsets, max(counts) if longest is None else longest


@pytest.mark.parametrize("counts", [(5, 5), (7, 0, 3)])
def test_attention_counts_the_pairs_of_each_sample(counts):
    q, k, v, offsets, longest = packed(counts)
    arguments = q, k, v, offsets, offsets, longest, longest
    expected = 4 * 16 * sum(n * n for n in counts)
    assert flops(dk.attention, *arguments)[0] == expected
    assert flops(dk.attention, q.requires_grad_(), *arguments[1:], backend="sdpa")[0] == expected
    shared = q.detach(), k[:, :1], v[:, :1], *arguments[3:]
    assert flops(dk.attention, *shared)[0] == expected
    assert flops(dk.attention, q, *shared[1:], backend="sdpa")[0] == expected
    backward = flop_registry[torch.ops.diffratio.attention_backward]
    assert backward(q, q, k, v, q, q, *arguments[3:], None, None, out_val=q) == expected * 5 // 2


def test_two_bin_attention_counts_both_bins():
    q, k, v, large, longest = packed((7, 7))
    small = torch.tensor([0, 3, 6], dtype=torch.int32)
    arguments = q, k, v, large, small, longest, 3, 6
    expected = 4 * 16 * 2 * (49 + 9)
    assert flops(dk.two_bin_attention, *arguments)[0] == expected
    assert flops(dk.two_bin_attention, q.requires_grad_(), *arguments[1:], backend="reference")[0] == expected
    uneven = q.detach(), k, v, torch.tensor([0, 10, 14], dtype=torch.int32), small, 10, 3, 6
    assert flops(dk.two_bin_attention, *uneven)[0] == 4 * 16 * (100 + 16 + 9 + 9)


def test_mlp_counts_two_products():
    rows, fc1, fc2 = torch.randn(5, 8), torch.randn(24, 8), torch.randn(8, 24)
    for given in (rows, rows.requires_grad_()):
        assert flops(dk.mlp, given, fc1, None, fc2, None)[0] == 2 * 2 * 5 * 8 * 24


def test_without_values_every_sample_is_the_longest():
    with torch.device("meta"):
        q, k, v, offsets, _ = packed((5, 5))
        assert flops(dk.attention, q, k, v, offsets, offsets, 6, 6)[0] == 4 * 16 * 2 * 36


def test_the_counter_is_imported_by_nobody_else():
    """It imports Triton, which the operators do without."""
    code = "import sys, diffratio_kernels\nassert 'torch.utils.flop_counter' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
