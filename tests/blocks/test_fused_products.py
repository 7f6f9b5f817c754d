"""Which products of a block end in the residual stream in one kernel."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diffratio_kernels import _triton, mod_block
from diffratio_kernels._backends import kernels
from diffratio_kernels.blocks import products, routed
from diffratio_kernels.testing.cases import ModBlockCase
from diffratio_kernels.types import Linear, Run
from tools.launchers.check import same_bits

CASE = ModBlockCase(seed=5, tokens=20, heads=2, head_dim=16, hidden=40, keep=(9, 4), text=3)
ENDS = ["linear_gate_residual", "linear_gate_residual", "linear_scatter"]


@pytest.fixture
def ran(monkeypatch):
    """Names of the launchers that end a product in a row step and that a test calls."""
    names = []

    def watch(module, name):
        plain = getattr(module, name)

        def watched(*args, **options):
            names.append(name)
            return plain(*args, **options)

        monkeypatch.setattr(module, name, watched)

    watch(kernels("fused_linear", "gate_residual"), "linear_gate_residual")
    watch(kernels("fused_linear", "scatter"), "linear_scatter")
    return names


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference", "auto"])
def test_only_triton_ends_its_products_in_one_kernel_on_the_cpu(backend, ran):
    mod_block(**CASE.arguments(), backend=backend)
    assert ran == (ENDS if backend == "triton" else [])


def test_with_a_gradient_products_and_row_steps_stay_apart(ran):
    arguments = CASE.arguments()
    arguments["x"].requires_grad_()
    mod_block(**arguments, backend="triton")
    assert ran == []


@pytest.mark.parametrize("rescale", ["mlp", "residual", "output", "none"])
def test_the_result_is_that_of_the_reference(rescale):
    arguments = replace(CASE, rescale=rescale).arguments()
    x = arguments["x"].clone()
    out = mod_block(**arguments, backend="triton")
    torch.testing.assert_close(out, mod_block(**arguments, backend="reference"), rtol=1e-5, atol=1e-5)
    assert torch.equal(arguments["x"], x) and not torch.equal(out, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gathered_rows_that_only_one_product_reads_are_not_written(dtype, monkeypatch):
    """That product finds them in x, and the bits are those of a block that writes them."""
    arguments, rows = replace(CASE, dtype=dtype).arguments(), []
    module, step = kernels("adaln", "triton"), routed.run_gather_adaln
    kernel = module.gather_adaln

    def watched(x, *args, **options):
        results = kernel(x, *args, **options)
        if x.dim() == 3:  # packed rows are gathered already
            rows.append(results)
        return results

    def writing(*operands, keep_rows):
        return step(*operands, keep_rows=True)

    monkeypatch.setattr(module, "gather_adaln", watched)
    found = mod_block(**arguments, backend="triton")
    monkeypatch.setattr(routed, "run_gather_adaln", writing)
    assert same_bits(found, mod_block(**arguments, backend="triton"))
    assert rows[0][0] is None and same_bits(rows[0][1], rows[1][1])
    assert rows[1][0].shape == rows[1][1].shape


def run(others="auto", direct=True):
    return Run("cuda", others, attention="auto", direct=direct)


def like(dtype=torch.bfloat16, device="cuda"):
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("faster", [True, False])
def test_auto_follows_the_table_on_a_gpu_in_half(faster, monkeypatch):
    def takes_ours(kernel, dtype, device, *shape):
        return faster and (kernel, dtype, shape) == ("joined", torch.bfloat16, (1152, 8192, 576))

    monkeypatch.setattr(products, "takes_ours", takes_ours)
    linear = Linear(torch.empty(1152, 576))
    shape = 8192, linear
    assert products.fuses(run(), "joined", like(), *shape) == faster
    assert products.fuses(run("triton"), "joined", like(), *shape)
    assert not products.fuses(run(), "joined", like(torch.float32), *shape)
    assert not products.fuses(run("reference"), "joined", like(), *shape)
    assert not products.fuses(run("triton", direct=False), "joined", like(), *shape)
    for not_raw in (None, linear.__call__, torch.nn.Linear(8, 8)):
        assert not products.fuses(run("triton"), "joined", like(), 8192, not_raw)


def test_nothing_is_launched_where_nothing_is_kept(monkeypatch):
    def refused(kernel, *_):
        raise RuntimeError(f"launched {kernel}")

    monkeypatch.setitem(_triton.stand_ins, "cpu", refused)
    case = replace(CASE, keep=(0, 0))
    out = mod_block(**case.arguments(), backend="triton")
    assert torch.equal(out, case.arguments()["x"])
    with pytest.raises(RuntimeError, match="launched"):
        mod_block(**CASE.arguments(), backend="triton")
