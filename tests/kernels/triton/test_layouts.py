"""Where a tensor lies in memory changes no bit: views, strides, and the dtype in which modulation is held."""

import pytest
import torch

from diffratio_kernels._backends import kernels
from diffratio_kernels.testing.cases import LAYOUTS, laid_out
from diffratio_kernels.types import Seqlens
from tools.guards.interpreter import interpreted
from tools.launchers.calls import VARIANTS, kernel_device, typical_call, working_dtypes
from tools.launchers.cases import seqlens_of
from tools.launchers.check import same_bits

HELD_IN = (*working_dtypes(kernel_device())[1:], torch.float64)
MODULATION = (
    "router_weight", "router_bias", "shift", "scale", "gate", "weight_large", "norm_weight", "norm_bias",
)  # fmt: skip
WITH_MODULATION = (
    "router_logits", "gather_adaln", "gather_adaln, groups", "adaln", "adaln, groups", "gate_residual",
    "gate_residual, normed", "scatter_rescale, mlp", "scatter_rescale, mlp, normed",
    "linear_gate_residual", "linear_scatter, mlp", "two_bin_blend, residual",
)  # fmt: skip

LIKE_OTHERS = (
    "scatter_rescale, residual", "scatter_rescale, output", "scatter_rescale, none", "scatter_rescale, mlp",
    "gather_adaln", "adaln", "gate_residual", "attention, shared keys", "two_bin_attention, shared keys",
)  # fmt: skip
"""They read by the same strides as another kind of their operator: in `make fuzz`."""
KINDS = [pytest.param(kind, marks=[pytest.mark.fuzz] * (kind in LIKE_OTHERS)) for kind in VARIANTS]


def place(t, layout):
    """ "joined": a part of one tensor, as q, k, v and the six modulations are."""
    if layout == "joined":
        return torch.stack([t.flip(0), t, t.flip(-1)], dim=1)[:, 1] if t.dim() >= 2 else t
    return laid_out(t, layout)


def floats(arguments, change):
    """The arguments with `change` applied to every floating tensor."""
    return {
        key: change(t) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for key, t in arguments.items()
    }


def column(t):
    """The same integers as a column of a table; what lies between them must not be read."""
    return torch.stack([t, torch.full_like(t, 5)], dim=1)[:, 0]


def assert_same(actual, expected):
    """The same bits. Compiled, alignment decides which threads share a sum, here of up to 129 fp32 terms."""
    assert actual.keys() == expected.keys()
    for key, result in actual.items():
        if interpreted() or not result.is_floating_point():
            assert same_bits(result, expected[key]), key
        else:
            limit = 129 * torch.finfo(torch.float32).eps * expected[key].abs().max().clamp(min=1)
            assert (result - expected[key]).abs().max() <= limit, key


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_inputs_and_gradients_does_not_matter(kind, device):
    operator, arguments = typical_call(kind, torch.float32, device)
    plain = floats(arguments, lambda t: t.clone(memory_format=torch.contiguous_format))
    before = {key: t.clone() for key, t in plain.items() if isinstance(t, torch.Tensor)}
    expected = operator.kernels(**plain)
    assert all(same_bits(plain[key], t) for key, t in before.items()), "an input was written to"
    for layout in ("joined", *LAYOUTS):
        strided = floats(plain, lambda t, layout=layout: place(t, layout))
        if layout in ("transposed", "sliced", "joined", "expanded"):
            assert any(not t.is_contiguous() for t in strided.values() if isinstance(t, torch.Tensor))
        if layout == "expanded":  # the first sample or row again and again: other values
            expected = operator.kernels(**floats(strided, lambda t: t.contiguous()))
        assert_same(operator.kernels(**strided), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_each_tensor_has_strides_of_its_own(kind, device):
    """One tensor after the other in a layout that none of its neighbours has."""
    operator, arguments = typical_call(kind, torch.float32, device)
    plain = floats(arguments, lambda t: t.clone(memory_format=torch.contiguous_format))
    expected = operator.kernels(**plain)
    for key, t in plain.items():
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dim() >= 2:
            moved = t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 2 else place(t, "joined")
            assert_same(operator.kernels(**plain | {key: moved}), expected)


@pytest.mark.parametrize("kind", WITH_MODULATION[1:])
def test_layout_of_the_index_does_not_matter(kind, device):
    operator, arguments = typical_call(kind, torch.float32, device)
    strided = arguments | {"index": column(arguments["index"])}
    if arguments.get("groups") is not None:
        strided["groups"] = torch.stack([arguments["groups"], arguments["groups"] * 0], dim=-1)[..., 0]
    assert_same(operator.kernels(**strided), operator.kernels(**arguments))


def test_layout_of_offsets_and_lengths_does_not_matter(device):
    _, a = typical_call("attention, cross", torch.float32, device)
    triton, tensors = kernels("attention", "triton"), (a["query"], a["key"], a["value"])
    plain = seqlens_of(a["queries"], a["keys"], 0, a["key_lengths"], a["query"].device)
    strided = Seqlens(
        column(plain.cu_seqlens_q), column(plain.cu_seqlens_k), plain.max_seqlen_q, plain.max_seqlen_k,
        column(plain.key_lengths),
    )  # fmt: skip

    def run(seqlens):
        out, lse = triton.attention(*tensors, seqlens, None, save_lse=True)
        grads = triton.attention_backward(a["grad_out"], *tensors, out, lse, seqlens, None)
        return dict(enumerate(grads))

    assert_same(run(strided), run(plain))


@pytest.mark.parametrize("held_in", HELD_IN, ids=str)
@pytest.mark.parametrize("kind", WITH_MODULATION)
def test_modulation_of_any_dtype_is_read_as_fp32(kind, held_in, device):
    operator, arguments = typical_call(kind, torch.float32, device)
    held = {key: arguments[key].to(held_in) for key in MODULATION if arguments.get(key) is not None}
    single = {key: t.float() for key, t in held.items()}
    assert_same(operator.kernels(**arguments | held), operator.kernels(**arguments | single))
