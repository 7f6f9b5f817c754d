"""Whatever text mask the dense block understands, the routed block means the same by it, on both paths."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio, cuda_graphs
from diffratio.families import text_mask
from diffratio.families.text_mask import text_lengths
from diffratio.routing.state import RoutedModel
from diffratio_kernels.blocks.stream import Valid

from .test_models import made

TOKENS = 5
MASKS = {
    "0/1": torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]),
    "bool per token": torch.tensor([[[True] * TOKENS], [[True, False, True, False, False]]]),
    "additive bias": torch.tensor([[[0.0, -2.0, 0.0, -1.0, 0.5]], [[0.0, 0.0, -3.0, 0.0, 0.0]]]),
    "soft 0/1": torch.tensor([[1.0, 0.9997, 1.0, 1.0, 1.0], [1.0, 1.0, 0.9995, 1.0, 1.0]]),
    "twos": torch.tensor([[1, 2, 1, 1, 1], [1, 1, 1, 2, 1]]),
    "nothing counts": torch.tensor([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", MASKS)
def test_text_masks_mean_what_they_mean_to_the_dense_block(tiny, name, grad):
    model = tiny.pixart()
    inputs = tiny.inputs(model)
    text = torch.randn(2, TOKENS, inputs["encoder_hidden_states"].shape[-1])
    inputs |= {"encoder_hidden_states": text, "encoder_attention_mask": MASKS[name]}
    dense = tiny.run(model, inputs)
    apply_diffratio(model, DiffRatioConfig(compression=0.0, rescale="none"))
    # Where nothing counts the dense block adds -10000 to every score and so rounds them to about 1e-3.
    atol = 1e-3 if name == "nothing counts" else 1e-5
    torch.testing.assert_close(tiny.run(model, inputs, grad=grad), dense, rtol=0, atol=atol)


@pytest.fixture
def shared():
    """What the blocks of one model share, in a call of it."""
    shared = RoutedModel(DiffRatioConfig())
    shared.memo = {}
    return shared


def test_a_capture_looks_at_the_mask_itself(shared, monkeypatch):
    """What was found before the capture would be a constant of the graph, whatever mask a replay is given."""
    mask = MASKS["bool per token"].clone()
    order, lengths = text_lengths(mask, shared)
    assert lengths.tolist() == [5, 2] and text_lengths(mask, shared)[0] is order
    monkeypatch.setattr(text_mask, "capturing", lambda: True)
    shared.memo = {}
    assert text_lengths(mask, shared)[0] is not order
    assert torch.equal(text_lengths(mask, shared)[0], order)


def test_one_run_of_a_graph_knows_nothing_of_the_run_before(tiny, op_recorder, monkeypatch):
    """The blocks get the caller's own bool mask, which the warm-up has looked at already."""
    op_recorder().install(monkeypatch)
    model = tiny.route(tiny.pixart())
    inputs = tiny.inputs(model)
    mask = inputs["encoder_attention_mask"].bool()[:, None]
    others = [inputs | {"encoder_attention_mask": m} for m in (mask, mask.flip(0), mask.logical_not())]
    expected = [tiny.run(model, other) for other in others]
    with cuda_graphs(model):
        assert all(torch.equal(tiny.run(model, o), e) for o, e in zip(others, expected, strict=True))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_mask_is_looked_at_once_per_call(tiny, monkeypatch, grad):
    model, seen, look = tiny.route(tiny.pixart()), [], text_mask._look

    def counting(mask, waits):
        seen.append(mask)
        return look(mask, waits)

    monkeypatch.setattr(text_mask, "_look", counting)
    for calls in (1, 2):
        tiny.run(model, tiny.inputs(model), grad)
        assert len(seen) == calls
    assert model._diffratio_model.memo is None


def test_a_mask_of_inference_mode_may_change(tiny):
    pixart = tiny.route(tiny.pixart())
    inputs = tiny.inputs(pixart)
    with torch.inference_mode():
        mask = inputs["encoder_attention_mask"].bool()[:, None]
        inputs["encoder_attention_mask"] = mask
        before = tiny.run(pixart, inputs)
        mask[:, :, 3].logical_not_()
        after = tiny.run(pixart, inputs)
        assert torch.equal(after, tiny.run(pixart, inputs | {"encoder_attention_mask": mask.clone()}))
    assert not torch.allclose(after, before)


def test_a_mask_may_change_in_place_without_the_context(tiny):
    pixart = tiny.route(tiny.pixart())
    inputs = tiny.inputs(pixart)
    mask = inputs["encoder_attention_mask"] = inputs["encoder_attention_mask"].bool()[:, None]
    before = tiny.run(pixart, inputs)
    mask[:, :, 3].logical_not_()
    after = tiny.run(pixart, inputs)
    assert torch.equal(after, tiny.run(pixart, inputs | {"encoder_attention_mask": mask.clone()}))
    assert not torch.allclose(after, before)


class Waited(Exception):
    """Raised where the values of a mask on a GPU are asked for."""


class OnGpu:
    """As much of PixArt's bias on a GPU as can be had without waiting for it."""

    dtype, shape, device, is_meta = torch.float32, (2, 1, TOKENS), torch.device("cuda"), False

    def dim(self):
        return 3

    def __getitem__(self, _):
        raise Waited


def test_masks_on_a_gpu_are_waited_for_in_training_and_where_they_come_again(shared, monkeypatch):
    """Sampling must not wait, nor fall out of a CUDA graph."""
    with torch.no_grad():
        assert text_lengths(OnGpu(), shared) is None
        shared.text = True
        with pytest.raises(Waited):
            text_lengths(OnGpu(), shared)
        shared.text = None
    with pytest.raises(Waited):
        text_lengths(OnGpu(), shared)
    monkeypatch.setattr(text_mask, "capturing", lambda: True)
    shared.text = True
    assert text_lengths(OnGpu(), shared) is None


@pytest.mark.filterwarnings("ignore:the routers are untrained")
@pytest.mark.parametrize("name", ["qwen_image", "hunyuan_video", "mochi", "prx", "chroma_masked"])
def test_a_mask_is_sorted_once_for_all_blocks_of_a_call(name, monkeypatch):
    model, inputs = made(name)
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    blocks = sum("_diffratio" in vars(block) for block in model.modules())
    sort, sorted_ones = Valid.of, []
    monkeypatch.setattr(Valid, "of", lambda mask: sorted_ones.append(mask) or sort(mask))
    for calls in (1, 2):
        with torch.no_grad():
            model(**inputs)
        kinds = 2 if name in ("hunyuan_video", "chroma_masked") else 1  # blocks of two streams, then of one
        assert len(sorted_ones) == calls * kinds < calls * blocks
