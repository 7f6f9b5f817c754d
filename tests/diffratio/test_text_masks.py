"""Whatever text mask the dense block understands, the routed block means the same by it, on both paths."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.integrations import basic_transformer_block

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
    mask, text_lengths = MASKS["bool per token"].clone(), basic_transformer_block._text_lengths
    order, lengths = text_lengths(mask)
    assert lengths.tolist() == [5, 2] and text_lengths(mask)[0] is order
    monkeypatch.setattr(basic_transformer_block, "capturing", lambda: True)
    assert text_lengths(mask)[0] is not order
    assert torch.equal(text_lengths(mask)[0], order)
