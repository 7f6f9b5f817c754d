"""Which products of a block end in the residual stream in one kernel."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diffratio_kernels import mod_block
from diffratio_kernels.kernels.triton import config, launch
from diffratio_kernels.ops import block_products, block_steps
from diffratio_kernels.ops.block_products import Products
from diffratio_kernels.testing.inputs import ModBlockCase
from diffratio_kernels.testing.triton_check import same_bits

CASE = ModBlockCase(seed=5, tokens=20, heads=2, head_dim=16, hidden=40, keep=(9, 4), text=3)
ENDS = ["linear_gate_residual", "linear_gate_residual", "linear_scatter"]


@pytest.fixture
def ran(monkeypatch):
    """Names of the launchers of products that a test calls."""
    names, plain = [], block_products.triton

    class Launchers:
        def __getattr__(self, name):
            names.append(name)
            return getattr(plain, name)

    monkeypatch.setattr(block_products, "triton", Launchers())
    return names


@pytest.mark.parametrize("implementation", ["triton", "native", "reference", "auto"])
def test_only_triton_ends_its_products_in_one_kernel_on_the_cpu(implementation, ran):
    mod_block(**CASE.arguments(), implementation=implementation)
    assert [name for name in ran if name != "linear_gelu"] == (ENDS if implementation == "triton" else [])


def test_with_a_gradient_products_and_row_steps_stay_apart(ran):
    arguments = CASE.arguments()
    arguments["x"].requires_grad_()
    mod_block(**arguments, implementation="triton")
    assert ran == []


@pytest.mark.parametrize("rescale", ["mlp", "residual", "output", "none"])
def test_the_result_is_that_of_the_reference(rescale):
    arguments = replace(CASE, rescale=rescale).arguments()
    x = arguments["x"].clone()
    out = mod_block(**arguments, implementation="triton")
    torch.testing.assert_close(out, mod_block(**arguments, implementation="reference"), rtol=1e-5, atol=1e-5)
    assert torch.equal(arguments["x"], x) and not torch.equal(out, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gathered_rows_that_only_one_product_reads_are_not_written(dtype, monkeypatch):
    """That product finds them in x, and the bits are those of a block that writes them."""
    arguments, gather, rows = replace(CASE, dtype=dtype).arguments(), block_steps._gather_adaln, []

    def run(forget):
        def watched(kernel, products, *operands):
            def watch(*args, **keywords):
                rows.append(kernel(*args, **keywords))
                return rows[-1]

            return gather(watch, products, *operands[: 5 if forget else None])

        monkeypatch.setattr(block_steps, "_gather_adaln", watched)
        return mod_block(**arguments, implementation="triton")

    assert same_bits(run(forget=False), run(forget=True))
    assert rows[0][0] is None and same_bits(rows[0][1], rows[1][1])
    assert rows[1][0].shape == rows[1][1].shape


def products(implementation="auto", in_place=True):
    return Products(implementation, in_place, gate_residual=None, scatter_rescale=None)


def like(dtype=torch.bfloat16, device="cuda"):
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("of_library", [0.99, 1.0])
def test_auto_follows_the_table_on_a_gpu_in_half(of_library, monkeypatch):
    entry = replace(config.PRODUCT_TILES[0], kernel="joined", architecture=90, of_library=of_library)
    monkeypatch.setattr(config, "PRODUCT_TILES", [entry])
    monkeypatch.setattr(config, "architecture", lambda device: 90)
    monkeypatch.setattr(block_products, "why_not", lambda *_: None)
    config.nearest.cache_clear()
    shape, faster = (8192, torch.empty(1152, 1152)), of_library < 1
    assert products().is_one_kernel("joined", like(), *shape) == faster
    assert products("triton").is_one_kernel("joined", like(), *shape)
    for other in (like(torch.float32), like(torch.float64), like(device="cpu")):
        assert not products().is_one_kernel("joined", other, *shape)
    assert not products("reference").is_one_kernel("joined", like(), *shape)
    assert not products("triton", in_place=False).is_one_kernel("joined", like(), *shape)
    monkeypatch.setattr(block_products, "why_not", lambda *_: "no Triton")
    assert not products().is_one_kernel("joined", like(), *shape)
    config.nearest.cache_clear()


def test_nothing_is_launched_where_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(launch, "launch", None)
    case = replace(CASE, keep=(0, 0))
    out = mod_block(**case.arguments(), implementation="triton")
    assert torch.equal(out, case.arguments()["x"])
