"""The same bits again, in every order of programs, over poisoned memory, and whatever surrounds a sample."""

from itertools import accumulate
from unittest import mock

import pytest
import torch

from diffratio_kernels._triton import tiles
from tools.guards.interpreter import guarded
from tools.launchers.calls import VARIANTS, typical_call
from tools.launchers.check import same_bits

ORDERS = 2
SHARED = ("router_weight", "router_bias", "weight", "bias", "next_weight", "norm_weight", "norm_bias")
ACROSS_SAMPLES = ("d router_weight", "cu_seqlens", "row_map", "d norm_weight", "d norm_bias")
OF_GROUPS = ("shift", "scale", "gate")
"""Shared too where rows belong to groups of tokens, which lie in several samples; so are their gradients."""
WITH_SAMPLES = [
    kind for kind in VARIANTS if kind != "linear_gelu" and not kind.startswith(("two_bin", "activation"))
]


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for key, result in actual.items():
        assert same_bits(result, expected[key]), key


@pytest.mark.parametrize("kind", VARIANTS)
def test_order_of_programs_and_poison_change_no_bit(kind, dtype, device):
    operator, arguments = typical_call(kind, dtype, device)
    clean = operator.kernels(**arguments)
    assert all(result.isfinite().all() for result in clean.values())
    for seed in range(ORDERS):
        with guarded(seed):
            assert_same_bits(operator.kernels(**arguments), clean)


def cut(t, sample, samples, packed):
    """The part of one sample of a tensor [B, ...] or of packed rows; packed: rows in all -> kept counts."""
    if t.shape[0] == samples:
        return t[sample : sample + 1].clone()
    begin = sum(packed[t.shape[0]][:sample])
    return t[begin : begin + packed[t.shape[0]][sample]].clone()


def alone(arguments, sample, samples, packed):
    """The arguments of one sample of a batch."""
    part, shared = {}, SHARED if arguments.get("groups") is None else SHARED + OF_GROUPS
    for key, value in arguments.items():
        if key in ("queries", "keys", "keep", "keep_small", "key_lengths") and value is not None:
            part[key] = value[sample : sample + 1]
        elif isinstance(value, torch.Tensor) and key not in shared:
            part[key] = cut(value, sample, samples, packed)
        else:
            part[key] = value
    if "index" in arguments:
        part["index"] = part["index"] - sample * tokens_of(arguments)
    return part


def tokens_of(arguments):
    return arguments["tokens"] if "tokens" in arguments else arguments["x"].shape[1]


def kept_counts(arguments):
    """The number of samples, and the counts of each kind of packed rows by their sum."""
    if "queries" in arguments:
        lists = [arguments["queries"], arguments["keys"]]
    elif "keep" in arguments:
        lists = [arguments["keep"]]
    elif "index" in arguments:
        of_samples = "shift" if "shift" in arguments else "gate"
        samples = arguments[of_samples if arguments.get("groups") is None else "groups"].shape[0]
        lists = [(arguments["index"] // tokens_of(arguments)).bincount(minlength=samples).tolist()]
    else:
        return arguments["x"].shape[0], {}
    return len(lists[0]), {sum(counts): counts for counts in lists}


@pytest.mark.parametrize("kind", WITH_SAMPLES)
def test_a_sample_does_not_depend_on_its_neighbours(kind, dtype, device):
    operator, arguments = typical_call(kind, dtype, device)
    # Alignment decides how a compiled kernel loads, so it is the same for all: that of a fresh tensor.
    arguments = {
        key: t.clone(memory_format=torch.contiguous_format) if isinstance(t, torch.Tensor) else t
        for key, t in arguments.items()
    }
    samples, packed = kept_counts(arguments)
    assert samples > 1 and samples not in packed
    together = operator.kernels(**arguments)
    for sample in range(samples):
        results = operator.kernels(**alone(arguments, sample, samples, packed))
        for key, result in results.items():
            of_groups = arguments.get("groups") is not None and key.removeprefix("d ") in OF_GROUPS
            if key in ACROSS_SAMPLES or of_groups:
                continue
            expected = cut(together[key], sample, samples, packed)
            if key == "index":
                expected = expected - sample * arguments["logits"].shape[1]
            assert same_bits(result, expected), (sample, key)


def test_rows_of_a_product_do_not_depend_on_the_others(dtype, device):
    operator, arguments = typical_call("linear_gelu", dtype, device)
    together = operator.kernels(**arguments)
    bounds = [0, *accumulate([1, 12, 20])]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        part = {key: arguments[key][begin:end] for key in ("rows", "grad", "pre")}
        for key, result in operator.kernels(**arguments | part).items():
            assert same_bits(result, together[key][begin:end]), (begin, key)


@pytest.mark.parametrize("kind", [kind for kind in VARIANTS if "attention" in kind])
def test_half_a_tile_of_queries_gives_the_same_bits(kind, dtype, device):
    """Else a sample's bits depended on the longest one of its batch."""
    operator, arguments = typical_call(kind, dtype, device)
    results = []
    for tile in ((128, 64, 8, 3), (64, 64, 4, 3)):
        whole = tiles.attention_tile

        def forward(kernel, *shape, tile=tile, whole=whole):
            return whole(kernel, *shape) if "bwd" in kernel else tile

        with mock.patch.object(tiles, "attention_tile", forward):
            results.append(operator.kernels(**arguments))
    assert_same_bits(*results)
