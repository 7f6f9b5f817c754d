"""Logits of the next block made with the output of this one, and logits made before."""

from dataclasses import replace

import pytest
import torch

from diffratio_kernels import mod_block, mod_block_next, reference, route
from diffratio_kernels.kernels.triton import launch
from diffratio_kernels.ops import block_products
from diffratio_kernels.testing.inputs import ModBlockCase

CASE = ModBlockCase(
    seed=5, tokens=12, heads=2, head_dim=16, hidden=24, keep=(5, 4), text=None, router_bias=True
)
IMPLEMENTATIONS = ["native", "triton", "reference"]
RESCALE = ["mlp", "residual", "output", "none"]


def following(arguments, bias=True):
    width = arguments["router_weight"].shape[0]
    return {
        "next_router_weight": torch.randn(width, generator=torch.Generator().manual_seed(1)),
        "next_router_bias": torch.tensor([0.3]) if bias else None,
    }


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("rescale", "keep"), zip(RESCALE, [(5, 4), (0, 12), (0,), (12,)], strict=True), ids=str
)
def test_they_are_those_of_the_rows_as_stored(keep, rescale, implementation):
    for dtype in (torch.float32, torch.float16)[: 1 if implementation == "triton" else 2]:
        arguments = replace(CASE, keep=keep, rescale=rescale, dtype=dtype).arguments()
        router = following(arguments, bias=dtype == torch.float32)
        out, logits = mod_block_next(**arguments, **router, implementation=implementation)
        tolerance = 2e-3 if implementation == "triton" else 0  # there mod_block ends in linear_scatter
        alone = mod_block(**arguments, implementation=implementation)
        torch.testing.assert_close(out, alone, rtol=tolerance, atol=tolerance)
        gold = reference.router_logits(
            out.double(), *(t if t is None else t.double() for t in router.values())
        )
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), gold, rtol=1e-5, atol=1e-5)


def test_fp64_stays_fp64():
    arguments = replace(CASE, dtype=torch.float64).arguments()
    router = {name: t.double() for name, t in following(arguments).items()}
    out, logits = mod_block_next(**arguments, **router)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, reference.router_logits(out, *router.values()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("apart", [False, True], ids=["adjacent", "strided"])
def test_given_logits_take_the_place_of_the_router(apart, implementation):
    arguments = replace(CASE, rescale="residual").arguments()
    logits = route(arguments["x"], arguments["router_weight"], [5, 4], router_bias=arguments["router_bias"])[
        2
    ]
    if apart:
        logits = torch.stack((logits, torch.zeros_like(logits)), -1)[..., 0]
    expected = mod_block(**arguments, implementation=implementation)
    other = arguments | {"router_weight": torch.randn_like(arguments["router_weight"]), "router_bias": None}
    out = mod_block(**other, logits=logits, implementation=implementation)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(out, mod_block(**other, implementation=implementation))


def test_a_chain_of_two_blocks_is_that_without():
    first = CASE.arguments()
    router = following(first)
    second = first | {
        "router_weight": router["next_router_weight"],
        "router_bias": router["next_router_bias"],
    }
    x, logits = mod_block_next(**first, **router, implementation="native")
    out = mod_block(**second | {"x": x}, logits=logits, implementation="native")
    assert torch.equal(out, mod_block(**second | {"x": x}, implementation="native"))


def test_the_triton_block_scores_no_row_twice(monkeypatch):
    arguments, names, plain = CASE.arguments(), [], launch.launch
    logits = route(arguments["x"], arguments["router_weight"], [5, 4])[2]
    for module in ("router_logits", "scatter_rescale", "linear_scatter", "topk_select"):
        monkeypatch.setattr(
            f"diffratio_kernels.kernels.triton.{module}.launch",
            lambda kernel, *args, **options: (
                names.append(kernel.fn.__name__) or plain(kernel, *args, **options)
            ),
        )
    mod_block_next(**arguments, **following(arguments), logits=logits, implementation="triton")
    assert names == ["_topk_select", "_scatter_rescale_fwd"]


def test_whole_rows_keep_the_product_apart(monkeypatch):
    monkeypatch.setattr(block_products.Products, "is_one_kernel", lambda *_: True)
    arguments = CASE.arguments()
    monkeypatch.setattr(block_products.triton, "linear_scatter", None, raising=False)
    mod_block_next(**arguments, **following(arguments), implementation="triton")
    with pytest.raises(TypeError):
        mod_block(**arguments, implementation="triton")


@pytest.mark.parametrize("op", [mod_block, mod_block_next])
def test_gradients_are_refused(op):
    arguments = CASE.arguments()
    extra = {"logits": torch.zeros(2, 12)} if op is mod_block else following(arguments)
    arguments["fc1_weight"].requires_grad_()
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with pytest.raises(NotImplementedError, match=f"{op.__name__}: no gradients"):
                op(**arguments, **extra)
            with torch.no_grad():
                op(**arguments, **extra)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast(implementation):
    arguments = CASE.arguments()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = route(
            arguments["x"], arguments["router_weight"], [5, 4], router_bias=arguments["router_bias"]
        )[2]
        expected = mod_block(**arguments, implementation=implementation)
        out, following_logits = mod_block_next(
            **arguments, **following(arguments), logits=logits, implementation=implementation
        )
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=1e-2)
    gold = reference.router_logits(out, *following(arguments).values())
    torch.testing.assert_close(following_logits, gold, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"logits": torch.zeros(2, 11)}, ValueError, "logits must be"),
        ({"logits": torch.zeros(2, 12, dtype=torch.float16)}, TypeError, "logits must be of dtype float32"),
        ({"logits": torch.zeros(2, 12, device="meta")}, ValueError, "logits must be on cpu"),
        ({"next_router_weight": torch.zeros(31)}, ValueError, "next_router_weight must be"),
        ({"next_router_bias": torch.zeros(2)}, ValueError, "next_router_bias must be"),
    ],
    ids=str,
)
def test_bad_logits_and_routers_are_errors(change, error, text):
    arguments = CASE.arguments()
    with pytest.raises(error, match=f"mod_block_next: {text}"):
        mod_block_next(**arguments | following(arguments) | change)
