"""A whole routed PixArt on a GPU: `cuda_graphs` and `cache_text` give the eager bits and wait for nothing."""

from contextlib import contextmanager

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch.utils._pytree import tree_map_only

from diffratio import DiffRatioConfig, apply_diffratio, cache_text, cuda_graphs
from diffratio.families import text_mask
from diffratio.routing.find import routed_blocks
from tests.diffratio.families.cases import MODELS
from tests.diffratio.families.test_models import made
from tests.diffratio.families.test_models import run as run_family

pytestmark = pytest.mark.gpu
REGIONS = {0: [0.1, 0.2, 0.3, 0.4], -1: [1.0, 0.0, 0.2, 0.5]}
TIMES = (900, 700, 400, 100)


def pixart(dtype=torch.bfloat16, **settings):
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=72,
        num_layers=3,
        sample_size=16,
        cross_attention_dim=144,
        caption_channels=24,
        in_channels=4,
        out_channels=4,
        norm_num_groups=1,
    )
    apply_diffratio(model.eval().to("cuda", dtype), DiffRatioConfig(0.5, **settings))
    for block in routed_blocks(model):
        torch.nn.init.normal_(block.diffratio.router_weight)
    return model


def calls(dtype=torch.bfloat16, times=TIMES, masked=True):
    """Inputs that differ in all their values."""
    for seed, time in enumerate(times):
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(2, 4, 16, 16, generator=generator).to("cuda", dtype)
        text = torch.randn(2, 9, 24, generator=generator).to("cuda", dtype)
        mask = torch.randint(0, 2, (2, 9), generator=generator).cuda() if masked else None
        yield {
            "hidden_states": latent,
            "encoder_hidden_states": text,
            "timestep": torch.full((2,), time, device="cuda"),
            "encoder_attention_mask": mask,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }


@torch.no_grad()
def run(model, inputs):
    return model(**inputs, return_dict=False)[0]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_have_the_eager_bits(dtype, masked):
    """Masks are a bias in both: their values are waited for in neither."""
    model = pixart(dtype, num_regions=4, overrides=REGIONS)
    given = list(calls(dtype, TIMES * 3, masked))
    expected = [run(model, inputs) for inputs in given]
    with cuda_graphs(model) as graphs:
        assert same([run(model, inputs) for inputs in given], expected)
        assert len(graphs) == len(TIMES)


HANDED = ("qwen_image", "qwen_image_edit", "ltx2", "chroma", "wan", "flux")
"""Most of them hand numbers of the host to the GPU in every call, which no capture can."""


def on_gpu(name):
    model, inputs = made(name)
    apply_diffratio(model.to("cuda"), DiffRatioConfig(0.5))
    return model, tree_map_only(torch.Tensor, lambda t: t.to("cuda"), inputs)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the routers are untrained")
@pytest.mark.parametrize("name", HANDED)
def test_families_have_the_eager_bits(name):
    model, inputs = on_gpu(name)
    expected = run_family(model, inputs)
    with cuda_graphs(model) as graphs:
        for _ in range(2):
            assert torch.equal(run_family(model, inputs), expected)
        assert len(graphs) == 1


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the routers are untrained")
@pytest.mark.parametrize("name", [name for name, make in MODELS.items() if getattr(make, "graphs", None)])
def test_families_that_wait_are_refused_before_a_capture(name):
    """So that the next one works."""
    model, inputs = on_gpu(name)
    with cuda_graphs(model), pytest.raises(RuntimeError, match=f"no graph can hold {type(model).__name__}"):
        run_family(model, inputs)
    test_families_have_the_eager_bits("flux")


def test_weights_in_place_are_seen_and_moved_ones_captured_again():
    model, (inputs,) = pixart(), calls(times=(500,), masked=False)
    with cuda_graphs(model):
        before = run(model, inputs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.25)
        edited = run(model, inputs)
    assert torch.equal(run(model, inputs), edited)
    assert not torch.allclose(edited, before)
    with cuda_graphs(model):
        run(model, inputs)
        model.cpu().cuda()
        moved = run(model, inputs)
    assert torch.equal(run(model, inputs), moved)


def test_replays_take_no_memory_and_wait_for_nothing():
    model = pixart()
    first, *others = calls(times=[500] * 20, masked=False)
    with cuda_graphs(model):
        run(model, first)
        run(model, first)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with waiting_is_an_error():
            for inputs in others:
                run(model, inputs)
        assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_text_has_the_eager_bits(dtype):
    model = pixart(dtype)
    texts = list(calls(dtype, masked=False))
    steps = [inputs | {"encoder_hidden_states": texts[0]["encoder_hidden_states"]} for inputs in texts]
    expected = [run(model, inputs) for inputs in steps]
    with cache_text(model):
        assert same([run(model, inputs) for inputs in steps], expected)


def test_cached_text_reads_a_mask_once_per_call_and_means_the_same_by_it(monkeypatch):
    model, (inputs,), waits, look = (
        pixart(torch.float32),
        calls(torch.float32, times=(500,)),
        [],
        text_mask._look,
    )

    def counting(mask, **options):
        waits.append(mask)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return look(mask, **options)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    expected = run(model, inputs)  # by the blocks' own modules
    monkeypatch.setattr(text_mask, "_look", counting)
    with cache_text(model):
        first = run(model, inputs)
        assert len(waits) == 1
        with waiting_is_an_error():
            assert torch.equal(run(model, inputs), first)
        assert len(waits) == 2
    assert (first - expected).abs().max() <= 1e-3 * expected.abs().max()
