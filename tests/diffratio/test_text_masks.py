"""Whatever text mask the dense block understands, the routed block means the same by it, on both paths."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.integrations import text_mask

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


def test_a_capture_looks_at_the_mask_itself(monkeypatch):
    """What was found before the capture would be a constant of the graph, whatever mask a replay is given."""
    mask, text_lengths = MASKS["bool per token"].clone(), text_mask.text_lengths
    order, lengths = text_lengths(mask)
    assert lengths.tolist() == [5, 2] and text_lengths(mask)[0] is order
    monkeypatch.setattr(text_mask, "capturing", lambda: True)
    assert text_lengths(mask)[0] is not order
    assert torch.equal(text_lengths(mask)[0], order)


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


def test_masks_on_a_gpu_are_waited_for_where_they_come_again(monkeypatch):
    gpu, readable = torch.device("cuda"), text_mask._readable
    with torch.no_grad():
        assert readable(gpu, comes_again=True) and not readable(gpu)
        monkeypatch.setattr(text_mask, "capturing", lambda: True)
        assert not readable(gpu, comes_again=True)


@torch.no_grad()
def test_a_bias_has_the_dtype_of_the_latents(tiny):
    model = tiny.pixart()
    inputs, mask = tiny.inputs(model), text_mask.TextMask()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        given = inputs | {"hidden_states": inputs["hidden_states"].to(dtype)}
        _, changed = mask.arguments(model, (), given)
        assert changed["encoder_attention_mask"].dtype == dtype
