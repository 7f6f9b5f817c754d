"""Kernels of two bins over random shapes: within the error budget, all guards on."""

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch

from diffratio_kernels.ops.two_bin_attention import triton as attention
from diffratio_kernels.ops.two_bin_gelu import triton as gelu
from diffratio_kernels.testing import budget
from diffratio_kernels.types import Nested
from tools.guards.interpreter import guarded
from tools.launchers import two_bin
from tools.launchers.calls import VARIANTS, random_call, typical_call
from tools.launchers.check import check_kernels, same_bits
from tools.launchers.two_bin import TWO_BIN, TWO_BIN_HEAD_DIMS

SEEDS = 90
STEP = 15
KINDS = [kind for kind in VARIANTS if kind.startswith("two_bin")]


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_launchers_stay_within_the_error_budget(first, device):
    for seed in range(first, first + STEP):
        check_kernels(seed, device, family="two bins")


def test_seeds_reach_the_edges():
    found = defaultdict(Counter)
    heads = set()
    for seed in range(SEEDS):
        name, dtype, a = random_call(seed, family="two bins")
        bins = list(zip(a["keep_small"], a["keep_large"], strict=True))
        found[name] += Counter(
            {
                dtype: 1,
                "no samples": not bins,
                "many samples": len(bins) > 2,
                "equal bins": any(0 < small == large for small, large in bins),
                "nothing small": any(0 == small < large for small, large in bins),
                "a part": any(0 < small < large for small, large in bins),
                "nothing kept": any(large == 0 for _, large in bins)
                and a["grad" if "grad" in a else "grad_out"].numel() > 0,
                "outside": "weight_large" in a and bool(((a["weight_large"] - 0.5).abs() > 0.5).any()),
            }
        )
        if name == "two_bin_blend":
            found[name][a["rescale"]] += 1
            found[name]["all kept"] += a["logits"].shape[1] in a["keep_small"]
        if name == "two_bin_attention":
            heads.add(a["query"].shape[2])
    assert set(found) == set(TWO_BIN)
    wanted = {
        "no samples",
        "many samples",
        "equal bins",
        "nothing small",
        "a part",
        "nothing kept",
        "outside",
    }
    wanted |= {torch.float32, torch.float16}
    modes = {"mlp", "residual", "output", "none", "all kept"}
    missing = {name: wanted - set(+seen) for name, seen in found.items()}
    assert missing == {"two_bin_gelu": set(), "two_bin_blend": set(), "two_bin_attention": {"outside"}}
    assert modes <= set(+found["two_bin_blend"]) and heads == set(TWO_BIN_HEAD_DIMS)


def test_a_failure_says_how_to_repeat_it(device, monkeypatch):
    """The check fires on a gradient that is 1 % too large, and names the seed."""
    plain = gelu.two_bin_gelu_backward

    def two_bin_gelu_backward(*args):
        grad_pre, dots = plain(*args)
        return grad_pre, dots * 1.01

    monkeypatch.setattr(gelu, "two_bin_gelu_backward", two_bin_gelu_backward)
    monkeypatch.setattr(budget, "worst", {})
    seed = next(s for s in range(0, 60, 3) if sum(random_call(s, family="two bins")[2]["keep_large"]) > 0)
    with pytest.raises(AssertionError, match=rf"check_kernels\({seed}, '{device}', 'two bins'\).*d weights"):
        check_kernels(seed, device, family="two bins")


def alone(arguments, sample):
    """The arguments of one sample of a batch."""
    bins = {key: arguments[key] for key in ("keep_large", "keep_small")}
    large, small = (sum(counts) for counts in bins.values())
    packed = {
        large: [arguments["keep_large"]],
        large + small: [arguments["keep_large"], arguments["keep_small"]],
    }
    part = {}
    for key, value in arguments.items():
        if key in bins:
            part[key] = value[sample : sample + 1]
        elif isinstance(value, torch.Tensor):
            part[key] = cut(value, sample, len(arguments["keep_large"]), packed)
        else:
            part[key] = value
    if "index" in arguments:
        part["index"] = part["index"] - sample * arguments["x"].shape[1]
    return part, packed


def cut(t, sample, samples, packed):
    """The part of one sample of a tensor [B, ...], of packed rows of the large bin, or of both bins."""
    if t.shape[0] == samples:
        return t[sample : sample + 1].clone()
    parts = t.split([count for counts in packed[t.shape[0]] for count in counts])
    return torch.cat(parts[sample::samples])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_neighbours(kind, device):
    operator, arguments = typical_call(kind, torch.float16, device)
    arguments = {
        key: t.clone(memory_format=torch.contiguous_format) if isinstance(t, torch.Tensor) else t
        for key, t in arguments.items()
    }
    together = operator.kernels(**arguments)
    for sample in range(2):
        part, packed = alone(arguments, sample)
        for key, result in operator.kernels(**part).items():
            assert same_bits(result, cut(together[key], sample, 2, packed)), (sample, key)


ODD = [float("nan"), -float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e-7]


def odd_values(like):
    return torch.tensor(ODD).to(like).repeat(-(-like.numel() // len(ODD)))[: like.numel()].view(like.shape)


@pytest.mark.parametrize("rescale", ["mlp", "residual", "output", "none"])
def test_rows_that_are_not_kept_come_back_bit_equal(rescale, dtype, device):
    operator, arguments = typical_call("two_bin_blend, residual", dtype, device)
    arguments["rescale"] = rescale
    x, grad = arguments["x"].flatten(0, 1), arguments["grad_out"].flatten(0, 1)
    expected = operator.kernels(**arguments)
    untouched = torch.ones(x.shape[0], dtype=torch.bool, device=device)
    untouched[arguments["index"]] = False
    x[untouched], grad[untouched] = odd_values(x[untouched]), odd_values(grad[untouched]).flip(0)
    arguments["logits"].view(-1)[untouched] = float("nan")
    results = operator.kernels(**arguments)
    for key, source in (("out", x), ("d x", grad)):
        rows = results[key].flatten(0, 1)
        assert same_bits(rows[untouched], source[untouched]), key
        assert same_bits(rows[~untouched], expected[key].flatten(0, 1)[~untouched]), key
    for key in ("d hidden", "d branch", "d gate", "d logits", "d weights"):
        assert same_bits(results[key], expected[key]), key


@pytest.mark.parametrize("rescale", ["mlp", "output", "none"])
def test_rows_of_both_bins_do_not_read_x(rescale, dtype, device):
    """Their x has no weight at all: there, NaN in it must not reach the result."""
    operator, arguments = typical_call("two_bin_blend, residual", dtype, device)
    arguments["rescale"] = rescale
    expected = operator.kernels(**arguments)
    parts = arguments["index"].split(arguments["keep_large"])
    small = [rows[:count] for rows, count in zip(parts, arguments["keep_small"], strict=True)]
    arguments["x"].flatten(0, 1)[torch.cat(small)] = float("nan")
    with guarded(0):
        results = operator.kernels(**arguments)
    for key, result in results.items():
        assert same_bits(result, expected[key]), key


def test_layout_of_offsets_and_weights_does_not_matter(device):
    """As a column of a table; what lies between must not be read."""
    operator, arguments = typical_call("two_bin_gelu", torch.float32, device)
    pre, grad = arguments["pre"], arguments["grad"]
    plain = two_bin.bins_of(*(arguments[key] for key in ("weight_large", "keep_large", "keep_small")))
    cu_seqlens = {
        name: column(getattr(plain, name)) for name in ("cu_seqlens_large", "cu_seqlens_small")
    }  # fmt: skip
    strided = replace(plain, weight_large=column(plain.weight_large), **cu_seqlens)
    expected = operator.kernels(**arguments)
    for bins in (strided, replace(plain, weight_large=plain.weight_large.double())):
        assert same_bits(gelu.two_bin_gelu(pre, bins), expected["inner"])
        grad_pre, dots = gelu.two_bin_gelu_backward(grad, pre, bins)
        assert same_bits(grad_pre, expected["d pre"]) and same_bits(dots, expected["d weights"])


def column(t):
    """The same numbers as a column of a table."""
    return torch.stack([t, torch.full_like(t, 3)], dim=1)[:, 0]


def test_offsets_of_attention_may_be_strided(device):
    operator, a = typical_call("two_bin_attention", torch.float32, device)
    plain = two_bin.nested_of(a["keep_large"], a["keep_small"], 0, torch.device(device))
    strided = replace(
        plain,
        cu_seqlens_large=column(plain.cu_seqlens_large),
        cu_seqlens_small=column(plain.cu_seqlens_small),
    )
    tensors = a["query"], a["key"], a["value"]

    def run(nested):
        out, lse = attention.two_bin_attention(*tensors, nested, None, save_lse=True)
        grads = attention.two_bin_attention_backward(a["grad_out"], *tensors, out, lse, nested, None)
        return out, *grads

    assert all(map(same_bits, run(strided), run(plain)))


def test_heads_that_are_too_wide_are_refused(device):
    rows = torch.zeros(2, 1, 136, device=device)
    offsets = torch.tensor([0, 2], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="head_dim 136.*two bins take up to 128"):
        attention.two_bin_attention(rows, rows, rows, Nested(offsets, offsets, 2, 2, 2), None)
