"""Families' rms norms, rows of modulation for tokens and norms of branches run in our row operators."""

from unittest import mock

import pytest
import torch
from torch import nn

from diffratio.families import modules
from diffratio.families.norms import plain_norm
from diffratio_kernels import _native
from diffratio_kernels.ops.adaln import cpu as adaln
from diffratio_kernels.ops.gate_residual import cpu as gate_residual
from diffratio_kernels.ops.scatter_rescale import cpu as scatter_rescale
from diffratio_kernels.types import RowNorm

from .test_blocks import made, routed, run

pytestmark = pytest.mark.skipif(
    _native.unavailable is not None, reason=f"no C++ row kernels here: {_native.unavailable}"
)


@pytest.fixture
def calls(monkeypatch):
    """Kernel -> the calls of it, from inside of the block and by the operators of autograd."""
    found = {}
    for module, names in (
        (adaln, ("gather_adaln", "adaln", "adaln_backward")),
        (gate_residual, ("gate_residual", "gate_residual_backward")),
        (scatter_rescale, ("scatter_rescale", "scatter_rescale_backward")),
    ):
        for name in names:
            found[name] = mock.Mock(side_effect=getattr(module, name))
            monkeypatch.setattr(module, name, found[name])
    return found


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_block_of_z_image_runs_our_kernels(calls, training):
    case = made("z_image")
    model = routed(case)
    with torch.set_grad_enabled(training):
        image, _ = run(case, model)
    assert image.requires_grad == training
    (gathered,), (second,) = calls["gather_adaln"].call_args_list, calls["adaln"].call_args_list
    assert gathered.args[5] == second.args[5] == "rms"
    (gated,), (put,) = calls["gate_residual"].call_args_list, calls["scatter_rescale"].call_args_list
    of_attention, of_mlp = gated.args[4], put.args[0].norm
    for found, norm in ((of_attention, case.block.attention_norm2), (of_mlp, case.block.ffn_norm2)):
        assert isinstance(found, RowNorm) and found.kind == "rms" and found.eps == norm.eps
        assert torch.equal(found.weight, norm.weight)
    if training:
        image.sum().backward()
        assert calls["adaln_backward"].call_count == 2
        assert calls["gate_residual_backward"].call_count == calls["scatter_rescale_backward"].call_count == 1


@pytest.mark.parametrize("name", ["wan_ti2v", "ltx_i2v"])
def test_a_row_of_modulation_for_each_token_is_read_by_our_kernels(calls, name):
    case = made(name)
    with torch.no_grad():
        run(case, routed(case))
    groups = [
        calls["gather_adaln"].call_args.args[1].groups,
        calls["adaln"].call_args.args[1].groups,
        calls["gate_residual"].call_args.args[3].groups,
        calls["scatter_rescale"].call_args.args[0].rows.groups,
    ]
    assert all(t is not None and t.unique().numel() == t.numel() for t in groups)


def test_a_hooked_norm_of_a_branch_is_called(calls):
    case, seen = made("z_image"), []
    model = routed(case)
    case.block.ffn_norm2.register_forward_hook(lambda *given: seen.append(given))
    with torch.no_grad():
        run(case, model)
    assert len(seen) == 1 and calls["scatter_rescale"].call_args.args[0].norm is None
    assert calls["gate_residual"].call_args.args[4] is not None


def test_which_modules_are_norms_of_branches():
    parts = modules.Parts(None)
    plain = [nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False), nn.RMSNorm(8, eps=1e-5)]
    parts.norm_weights = {id(norm) for norm in plain}
    kinds = [parts.row_norm(norm) for norm in plain]
    assert [(found.kind, found.weight is None, found.bias is None) for found in kinds] == [
        ("layer", False, False), ("layer", True, True), ("rms", False, True),
    ]  # fmt: skip
    assert parts.row_norm(None) is None
    other = nn.LayerNorm(8)
    assert parts.row_norm(other) is other and not plain_norm(nn.RMSNorm(8))
