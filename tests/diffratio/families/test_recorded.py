"""Whole models through `cuda_graphs`, operators recorded on the CPU: the eager bits, and nothing stale of
what a model's call says of its tokens."""

import pytest
import torch
from torch.utils._pytree import tree_map_only

from diffratio import DiffRatioConfig, apply_diffratio, cuda_graphs
from diffratio.families import text_mask

from .cases import MODELS
from .test_models import made, run

READ = [name for name, make in MODELS.items() if getattr(make, "graphs", None)]
"""Models whose own forward, dense too, reads values."""
pytestmark = pytest.mark.filterwarnings("ignore:the routers are untrained")


@pytest.fixture
def recorder(monkeypatch, op_recorder):
    made = op_recorder()
    made.install(monkeypatch)
    monkeypatch.setattr(text_mask, "capturing", lambda: True)  # eager calls mean by a mask what a graph does
    return made


def others(name, value):
    """Latents, texts and masks of another call; positions stay."""
    if "mask" in name and value.dtype in (torch.bool, torch.int64):
        return value.flip(0)
    moves = value.is_floating_point() and value.dim() > 1 and not name.endswith("ids")
    return torch.randn_like(value) if moves else value.clone()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in READ])
def test_replays_have_the_eager_bits(name, recorder):
    model, inputs = made(name)
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    again = {k: tree_map_only(torch.Tensor, lambda t, k=k: others(k, t), v) for k, v in inputs.items()}
    with torch.no_grad():
        wanted = [run(model, given) for given in (inputs, again)]
        with cuda_graphs(model):
            got = [run(model, given) for given in (inputs, again)]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert recorder.replayed == 2


@pytest.mark.parametrize("name", READ)
def test_what_reads_values_is_refused(name, recorder):
    """By the model's name; what a CPU cannot tell apart, lists of its tensors, by the recorder."""
    model, inputs = made(name)
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    named = f"no graph can hold {type(model).__name__}: its forward|capturing .(tolist|numpy)"
    with torch.no_grad(), cuda_graphs(model) as held, pytest.raises(RuntimeError, match=named):
        run(model, inputs)
    assert len(held) == 0 and recorder.replayed == 0


def test_a_mask_that_the_model_is_told_of_is_no_constant(recorder):
    """LTX's blocks are given numbers to add; which tokens count is known from the model's own argument."""
    model, inputs = made("ltx")
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    mask = inputs["encoder_attention_mask"]
    given = [inputs | {"encoder_attention_mask": one} for one in (mask, mask.flip(0), torch.ones_like(mask))]
    with torch.no_grad():
        wanted = [run(model, one) for one in given]
        with cuda_graphs(model):
            assert all(torch.equal(run(model, one), out) for one, out in zip(given, wanted, strict=True))
    assert recorder.recorded == 1
    assert not torch.allclose(wanted[0], wanted[1])


def test_references_have_a_graph_of_their_own(recorder):
    """With as many tokens in all."""
    model, inputs = made("flux")
    apply_diffratio(model, DiffRatioConfig(compression=0.5))
    ids = inputs["img_ids"].clone()
    ids[20:, 0] = 1
    given = [inputs, inputs | {"img_ids": ids}, inputs]
    with torch.no_grad():
        wanted = [run(model, one) for one in given]
        with cuda_graphs(model) as held:
            assert all(torch.equal(run(model, one), out) for one, out in zip(given, wanted, strict=True))
            assert len(held) == 2
    assert not torch.allclose(wanted[0], wanted[1])
