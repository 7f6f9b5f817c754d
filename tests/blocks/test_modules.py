"""Router and ModBlock: names, starts, and a gradient that reaches the router."""

import pytest
import torch

from diffratio_kernels import reference, route
from diffratio_kernels.blocks.modules import ModBlock
from diffratio_kernels.blocks.router import Router

WIDTH, HEADS, TOKENS = 32, 2, 12


def inputs(batch=2, text=5):
    generator = torch.Generator().manual_seed(1)  # not the draws of the router
    x = torch.randn(batch, TOKENS, WIDTH, generator=generator)
    modulation = 0.3 * torch.randn(batch, 6, WIDTH, generator=generator)
    return x, modulation, torch.randn(batch, text, 20, generator=generator)


def as_reference(block, x, modulation, keep, **changes):
    """The arguments of the reference from a module's parameters."""
    parameters = {name.replace(".", "_"): p for name, p in block.named_parameters()}
    parameters["router_weight"] = parameters.pop("router_router_weight")
    for name in ("cross_kv_weight", "cross_kv_bias"):
        parameters.pop(name, None)
    options = {"rescale": block.rescale, "score_scale": block.router.score_scale, "eps": block.eps}
    arguments = {"x": x, "modulation": modulation, "keep": keep, "num_heads": HEADS}
    return arguments | parameters | options | changes


def test_state_dict_names_are_part_of_the_interface():
    linears = ["qkv", "out", "fc1", "fc2"]
    names = ["router.router_weight", *(f"{name}.{part}" for name in linears for part in ("weight", "bias"))]
    assert list(ModBlock(WIDTH, HEADS).state_dict()) == names
    cross = [f"cross_{name}.{part}" for name in ("q", "kv", "out") for part in ("weight", "bias")]
    assert list(ModBlock(WIDTH, HEADS, context_width=20).state_dict()) == names + cross
    assert list(Router(WIDTH, bias=True).state_dict()) == ["router_weight", "router_bias"]
    shapes = {name: tuple(t.shape) for name, t in Router(WIDTH, bias=True).state_dict().items()}
    assert shapes == {"router_weight": (WIDTH,), "router_bias": (1,)}


def test_state_dict_goes_into_another_block_and_back():
    first, second = ModBlock(WIDTH, HEADS, context_width=20), ModBlock(WIDTH, HEADS, context_width=20)
    x, modulation, context = inputs()
    second.load_state_dict(first.state_dict())
    outs = [block(x, modulation, 5, block.project_context(context)) for block in (first, second)]
    assert torch.equal(*outs)


def test_router_stays_in_fp32_in_a_block_of_low_precision():
    block = ModBlock(WIDTH, HEADS, dtype=torch.bfloat16)
    x, modulation, _ = inputs()
    assert block.router.router_weight.dtype == torch.float32 and block.qkv.weight.dtype == torch.bfloat16
    out = block(x.bfloat16(), modulation.bfloat16(), 5)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


@pytest.mark.parametrize("rescale", ["mlp", "residual", "output"])
@torch.no_grad()
def test_identity_start_is_the_dense_block(rescale):
    """The score is 2 sigmoid(l) = 1 + tanh(l / 2), so the block is off by that part of what it multiplies."""
    block = ModBlock(WIDTH, HEADS, rescale=rescale)
    x, modulation, _ = inputs()
    arguments = as_reference(block, x, modulation, [TOKENS] * 2, rescale="none")
    dense = reference.mod_block(**arguments)
    ungated = modulation * torch.tensor([1, 1, 1, 1, 1, 0])[:, None]
    hidden = reference.mod_block(**arguments | {"modulation": ungated})
    scored = {"mlp": dense - hidden, "residual": dense - x, "output": dense}[rescale]
    off = torch.tanh(reference.router_logits(x, block.router.router_weight) / 2)[..., None] * scored
    actual = block(x, modulation, TOKENS) - dense
    torch.testing.assert_close(actual, off, rtol=0, atol=2e-6)  # ten roundings of values up to 2
    assert (
        0 < actual.square().mean().sqrt() < 5e-3
    )  # logits of std 1e-3 sqrt(32), halved, times values near 1


def test_faithful_start_halves_the_mlp():
    block = ModBlock(WIDTH, HEADS, start="faithful")
    x, modulation, _ = inputs()
    assert block.router.score_scale == 1.0 and ModBlock(WIDTH, HEADS).router.score_scale == 2.0
    assert block.router.router_weight.abs().max() <= WIDTH**-0.5
    with torch.no_grad():
        block.router.router_weight.zero_()
        halved = as_reference(block, x, modulation, [TOKENS] * 2, rescale="none")
        halved["modulation"] = modulation * torch.tensor([1, 1, 1, 1, 1, 0.5])[:, None]
        torch.testing.assert_close(
            block(x, modulation, TOKENS), reference.mod_block(**halved), rtol=0, atol=2e-6
        )


def test_start_statistics():
    """std 1e-3 (a normal) and 1/sqrt(3 D) (nn.Linear's uniform), which 4096 draws give to 1 %."""
    assert Router(4096).router_weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert Router(4096, start="faithful").router_weight.std().item() == pytest.approx(
        (3 * 4096) ** -0.5, rel=0.05
    )
    router = Router(64, bias=True)
    before = router.router_weight.clone()
    router.reset_parameters()
    assert not torch.equal(before, router.router_weight) and router.router_bias.item() == 0


@pytest.mark.parametrize("keep", [TOKENS, 5, [3, 9]], ids=str)
@pytest.mark.parametrize("rescale", ["mlp", "residual", "output"])
def test_gradient_reaches_the_router(rescale, keep):
    """Its size, not only its existence: equal to the reference's, in fp64."""
    block = ModBlock(WIDTH, HEADS, context_width=20, rescale=rescale).double()
    x, modulation, context = (t.double() for t in inputs())
    kv = block.project_context(context)
    lengths = torch.tensor([5, 2], dtype=torch.int32)
    weight = block.router.router_weight
    grad_out = torch.randn(x.shape, dtype=torch.float64)
    (actual,) = torch.autograd.grad(block(x, modulation, keep, kv, lengths), weight, grad_out)
    full = keep if isinstance(keep, list) else [keep] * 2
    text = {"context_kv": kv.detach(), "context_lengths": lengths}
    out = reference.mod_block(**as_reference(block, x, modulation, full, **text))
    (expected,) = torch.autograd.grad(out, weight, grad_out)
    assert expected.norm() > 1e-6
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_training_the_block_changes_every_parameter():
    block = ModBlock(WIDTH, HEADS, context_width=20)
    x, modulation, context = inputs()
    block(x, modulation, 5, block.project_context(context)).square().sum().backward()
    assert all(p.grad is not None and p.grad.norm() > 1e-6 for p in block.parameters())


def test_router_module_is_the_operator():
    router = Router(WIDTH, bias=True)
    x, *_ = inputs()
    expected = route(x, router.router_weight, [5, 5], router_bias=router.router_bias)
    for keep in (5, [5], [5, 5]):
        assert all(torch.equal(a, b) for a, b in zip(router(x, keep), expected, strict=True))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Router(WIDTH, start="zero"), "Router: start='zero' must be one of"),
        (lambda: ModBlock(WIDTH, HEADS, start="zero"), "start='zero' must be one of"),
        (lambda: Router(WIDTH)(inputs()[0], 13), r"route: keep\[0\]=13"),
        (lambda: Router(WIDTH + 1)(inputs()[0], 3), "route: router_weight must be"),
        (lambda: ModBlock(WIDTH, HEADS)(*inputs()[:2], -1), r"mod_block: keep\[0\]=-1"),
        (lambda: ModBlock(WIDTH, 3)(*inputs()[:2], 4), "mod_block: num_heads=3"),
        (lambda: ModBlock(WIDTH, HEADS, rescale="both")(*inputs()[:2], 4), "mod_block: rescale='both'"),
        (lambda: ModBlock(WIDTH, HEADS, eps=0)(*inputs()[:2], 4), "mod_block: eps=0"),
        (
            lambda: ModBlock(WIDTH, HEADS, context_width=20)(*inputs()[:2], 4),
            "ModBlock: context_kv must be given",
        ),
    ],
)
def test_bad_arguments_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("name", ["context_kv", "context_lengths"])
def test_text_for_a_block_without_cross_attention_is_an_error(name):
    """It would be ignored in silence."""
    x, modulation, _ = inputs()
    text = {"context_kv": torch.randn(2, 5, 2, WIDTH), "context_lengths": torch.ones(2, dtype=torch.int32)}
    with pytest.raises(ValueError, match=name):
        ModBlock(WIDTH, HEADS)(x, modulation, 4, **{name: text[name]})


@pytest.mark.parametrize(("start", "missing"), [("identity", (0.0, 0.05)), ("faithful", (0.4, 0.6))])
def test_which_start_belongs_to_which_scale(start, missing):
    """Of a block that keeps everything, how much of the MLP branch is missing before any training."""
    torch.manual_seed(0)
    block = ModBlock(64, 4, start=start)
    x, modulation = torch.randn(2, 20, 64), torch.randn(2, 6, 64)
    with torch.no_grad():
        out = block(x, modulation, 20)
        block.rescale = "none"
        whole = block(x, modulation, 20)
        block.fc2.weight.zero_(), block.fc2.bias.zero_()
        branch = whole - block(x, modulation, 20)
    assert missing[0] <= ((whole - out).norm() / branch.norm()).item() <= missing[1]
    assert block.router.score_scale == {"identity": 2.0, "faithful": 1.0}[start]
