"""A routed block of every family against its plain definition: each sample alone, through the block's own
forward on its gathered rows."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from diffratio import DiffRatioConfig, apply_diffratio, learn_ratios
from diffratio.families import spec_for
from diffratio.families.registry import TIMESTEP_UNITS
from diffratio_kernels import _native, kept_tokens

from .cases import BLOCKS
from .cases.case import BATCH, Case, Holder

KEPT = (5, 3)
"""Tenths of the two samples: they keep unequal numbers of tokens."""
MODES = {"none": (1, 2), "mlp": KEPT, "residual": KEPT}
"""What the score multiplies -> kept tenths: also fewer image tokens than the text has."""
TOLERANCE = {"atol": 2e-6, "rtol": 2e-5}


def made(name: str) -> Case:
    torch.manual_seed(0)
    return BLOCKS[name]()


def timesteps(block: nn.Module) -> Tensor:
    """Sample 0 in the cleaner of two regions, sample 1 in the other one."""
    spec = spec_for(block)
    low, high = TIMESTEP_UNITS[spec.timestep_units]
    timesteps = torch.tensor([low + (high - low) / 4, low + (high - low) * 3 / 4])
    return timesteps[:, None] if spec.timesteps_of_tokens else timesteps


def routed(case: Case, kept=KEPT, rescale="mlp") -> Holder:
    model = Holder(case.block, **case.model)
    config = DiffRatioConfig(
        0.0, {0: [round(1 - tenths / 10, 1) for tenths in kept]}, num_regions=2, rescale=rescale
    )
    with pytest.warns(UserWarning, match="untrained") if min(kept) < 10 else nullcontext():
        apply_diffratio(model, config)
    router = case.block.diffratio.router_weight
    with torch.no_grad():
        router.copy_(torch.randn(router.shape) / router.numel() ** 0.5 if min(kept) < 10 else 0 * router)
    return model


def run(case: Case, model: Holder):
    return case.parts(model(timesteps(case.block), case.inputs, **case.told))


def image_rows(case: Case, b: int) -> slice:
    """Where the image's rows are in what the block returns."""
    return case.image(b) if case.image_out is None else case.image_out(b)


def plain(case: Case, router: Tensor, kept, rescale: str) -> tuple[list[Tensor], list[Tensor]]:
    """For each sample the rows of the tensor that holds its image, and its text."""
    images, texts = [], []
    for b in range(BATCH):
        span, place = case.image(b), image_rows(case, b)
        x = case.samples[b, span]
        logits = x @ router
        k = kept_tokens(kept[b], len(x))
        chosen = logits.detach().topk(k).indices.sort().values
        score = 2 * logits[chosen].sigmoid()[:, None]

        def scaled(module, args, out, b=b, k=k, score=score):
            first = case.mlp_start(b)
            flat = out.reshape(-1, out.shape[-1])
            part = flat[first : first + k] * score
            return torch.cat([flat[:first], part, flat[first + k :]]).view(out.shape)

        hook = case.mlp.register_forward_hook(scaled) if rescale == "mlp" else None
        image, text = case.parts(case.block(**case.alone(b, chosen)))
        if hook is not None:
            hook.remove()
        image, first = image[0], place.start
        done = image[first : first + k]
        if rescale == "residual":
            done = x[chosen] + score * (done - x[chosen])
        whole = torch.cat([image[:first], x.index_copy(0, chosen, done), image[first + k :]])
        images.append(whole)
        texts.append(None if text is None else text[0])
    return images, texts


def assert_same(case: Case, got, wanted, **tolerance):
    image, text = got
    tolerance |= case.tolerance
    for b in range(BATCH):
        rows = slice(None) if case.valid is None else case.valid[b]
        torch.testing.assert_close(image[b][rows], wanted[0][b][rows], **tolerance)
        if text is not None:
            rows = slice(None) if case.text_valid is None else case.text_valid[b]
            torch.testing.assert_close(text[b][rows], wanted[1][b][rows], **tolerance)


@pytest.mark.parametrize("name", BLOCKS)
def test_everything_kept_is_the_block(name):
    case = made(name)
    with torch.no_grad():
        wanted = case.parts(case.block(**case.inputs))
        assert_same(case, run(case, routed(case, (10, 10))), wanted, **TOLERANCE)


@pytest.mark.parametrize("rescale", MODES)
@pytest.mark.parametrize("name", BLOCKS)
def test_fewer_kept_are_each_sample_alone_on_its_rows(name, rescale):
    case, kept = made(name), MODES[rescale]
    model = routed(case, kept, rescale)
    with torch.no_grad():
        got = run(case, model)
        forward = vars(case.block).pop("forward")
        wanted = plain(case, case.block.diffratio.router_weight, kept, rescale)
        case.block.forward = forward
    assert_same(case, got, wanted, **TOLERANCE)


@pytest.mark.parametrize("gradient", (False, True))
@pytest.mark.parametrize("name", ("flux_double", "sd3_joint", "auraflow_joint"))
def test_where_no_token_is_kept_the_text_runs_alone(name, gradient):
    case = made(name)
    model = routed(case, (0, 0))
    with torch.set_grad_enabled(gradient):
        got = run(case, model)
    del case.block.forward
    wanted = plain(case, case.block.diffratio.router_weight, (0, 0), "mlp")
    assert torch.equal(got[0], case.samples)
    assert_same(case, got, wanted, **TOLERANCE)


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_not_kept_are_bit_equal(name):
    case = made(name)
    model = routed(case)
    before = case.samples.clone()
    with torch.no_grad():
        image, _ = run(case, model)
    for b in range(BATCH):
        was, now = before[b, case.image(b)], image[b, image_rows(case, b)]
        assert (was != now).any(-1).sum() == kept_tokens(KEPT[b], len(was))
    assert torch.equal(case.samples, before)


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_of_the_plain_definition(name):
    case = made(name)
    model = routed(case)
    x = case.inputs[case.tokens].requires_grad_()
    grads = []
    for which in ("routed", "plain"):
        model.zero_grad(set_to_none=True)
        x.grad = None
        if which == "routed":
            image, text = run(case, model)
        else:
            del case.block.forward
            image, text = plain(case, case.block.diffratio.router_weight, KEPT, "mlp")
        loss = 0
        for b in range(BATCH):
            rows = slice(None) if case.valid is None else case.valid[b]
            loss = loss + image[b][rows].square().sum()
            if text is not None and text[b] is not None and text[b].requires_grad:
                rows = slice(None) if case.text_valid is None else case.text_valid[b]
                loss = loss + text[b][rows].square().sum()
        loss.backward()
        found = {key: p.grad for key, p in case.block.named_parameters() if p.grad is not None}
        grads.append(found | {"tokens": x.grad})
    got, wanted = grads
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(
            got[key], value, atol=2e-5 * max(scale, 1), rtol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", BLOCKS)
def test_bf16_is_as_near_as_the_block_is(name):
    case = made(name)
    errors = []
    with torch.no_grad():
        exact, _ = case.parts(case.block(**case.inputs))
        case.block.bfloat16()
        case.inputs = {key: _half(key, value) for key, value in case.inputs.items()}
        dense, _ = case.parts(case.block(**case.inputs))
        got, _ = run(case, routed(case, (10, 10)))
    for out in (dense, got):
        error = (out.float() - exact).abs()
        errors.append((error if case.valid is None else error[case.valid]).mean().item())
    assert errors[1] <= 1.25 * errors[0], errors


def _half(name, value):
    if name == "encoder_hidden_states" and isinstance(value, tuple):
        return tuple(part.bfloat16() for part in value)
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


@pytest.mark.parametrize("name", BLOCKS)
def test_two_bins_are_both_blended(name):
    """A learned ratio between two bins: w F(x, large) + (1 - w) F(x, small), text included."""
    case = made(name)
    model = routed(case)
    router = case.block.diffratio.router_weight
    table = learn_ratios(model, start=0.5)
    with torch.no_grad():
        table.ratios.copy_(torch.tensor([[0.56, 0.33]]))
    model.train()
    got = run(case, model)
    model.eval()
    del case.block.forward
    large, small = (plain(case, router, kept, "mlp") for kept in ((6, 4), (5, 3)))
    wanted = []
    for stream in (0, 1):
        pairs = zip(large[stream], small[stream], (0.6, 0.3), strict=True)
        wanted.append([None if a is None else b + w * (a - b) for a, b, w in pairs])
    assert_same(case, got, wanted, atol=1e-5, rtol=1e-4)


LIBRARY = ("flux_double", "flux_single", "qwen_image_masked", "wan_ti2v", "z_image_ragged")


@pytest.mark.parametrize("name", LIBRARY)
def test_blocks_run_without_the_native_library(name, monkeypatch):
    case = made(name)
    model = routed(case)
    with torch.no_grad():
        wanted = run(case, model)
        monkeypatch.setattr(_native, "unavailable", "it was not built")
        assert_same(case, run(case, model), wanted, **TOLERANCE)
