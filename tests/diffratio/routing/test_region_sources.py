"""Timestep regions where nobody calls the model: forward, wrappers that drive the blocks, compiled forwards,
and schedulers with timesteps of their own."""

import copy

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from diffratio import DiffRatioConfig, apply_diffratio, diffratio_loss, learn_ratios, record_routing

KEPT = {100: 52, 400: 39, 600: 26, 900: 13}
"""Timestep -> kept tokens of 64 in its region, the cleanest keeps most."""
RATIOS = [0.2, 0.4, 0.6, 0.8]


@pytest.fixture
def routed(tiny, model):
    tiny.route(model, 0.0, num_regions=4, overrides={layer: RATIOS for layer in range(tiny.layers)})
    return model


class DrivesBlocks(nn.Module):
    """As ControlNets and block-swapping samplers do it: the parts of a model, never the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, hidden_states, timestep, encoder_hidden_states=None, class_labels=None, **others):
        model, x = self.model, self.model.pos_embed(hidden_states)
        if encoder_hidden_states is None:
            for block in model.transformer_blocks:
                x = block(x, timestep=timestep, class_labels=class_labels)
            return x
        conditions = {"resolution": None, "aspect_ratio": None}
        embedded, _ = model.adaln_single(timestep, conditions, batch_size=len(timestep), hidden_dtype=x.dtype)
        text = model.caption_projection(encoder_hidden_states)
        for block in model.transformer_blocks:
            x = block(x, encoder_hidden_states=text, timestep=embedded)
        return x


def kept(model, call):
    with record_routing(model) as log:
        call()
    return {count for entry in log for count in entry.kept().sum(1).tolist()}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("way", ["forward", "positional forward", "class", "blocks", "in turns"])
def test_regions_follow_whoever_tells_the_timestep(tiny, routed, grad, way):
    wrapper = DrivesBlocks(routed)

    def run(timestep):
        inputs = tiny.inputs(routed, timestep)
        with torch.set_grad_enabled(grad):
            if way == "forward":
                return routed.forward(**inputs)
            if way == "positional forward":
                text = (inputs["encoder_hidden_states"],) if "encoder_hidden_states" in inputs else ()
                return routed.forward(inputs["hidden_states"], *text, inputs["timestep"], **{
                    name: inputs[name] for name in ("class_labels", "added_cond_kwargs") if name in inputs
                })  # fmt: skip
            if way == "class":
                return type(routed).forward(routed, **inputs)
            if way == "in turns":
                routed(**tiny.inputs(routed, 999 - timestep))
                routed.forward(**tiny.inputs(routed, 999 - timestep))
                first = len(routed._diffratio_model.record)
                output = wrapper(**inputs)
                del routed._diffratio_model.record[:first]
                return output
            return wrapper(**inputs)

    for timestep in (*KEPT, *reversed(KEPT)):
        assert kept(routed, lambda timestep=timestep: run(timestep)) == {KEPT[timestep]}


@pytest.mark.parametrize("way", ["forward", "blocks"])
def test_learned_ratios_follow_too(tiny, routed, way):
    apply_diffratio(routed, DiffRatioConfig(0.0, num_regions=4))
    table = learn_ratios(routed, start=0.75)
    routed(**tiny.inputs(routed, 100))
    call = routed.forward if way == "forward" else DrivesBlocks(routed)
    output = call(**tiny.inputs(routed, 600))
    output = output if torch.is_tensor(output) else output.sample
    (output.square().mean() + diffratio_loss(routed, 0.5, 1.0)).backward()
    assert table.ratios.grad[:, 2].ne(0).all() and table.ratios.grad[:, [0, 1, 3]].eq(0).all()


@pytest.mark.parametrize(("kind", "driven"), [("pixart", False), ("pixart", True), ("dit", False)])
def test_a_compiled_forward_follows_the_regions(tiny, kind, driven):
    torch._dynamo.reset()
    routed = tiny.route(tiny.make(kind, num_layers=1), 0.0, num_regions=4, overrides={0: RATIOS})
    eager = copy.deepcopy(routed)
    if driven:
        expected, called = DrivesBlocks(eager), torch.compile(DrivesBlocks(routed), backend="eager")
    else:
        expected, called = eager.forward, torch.compile(routed.forward, backend="eager")
    for timestep in (900, 100, 900):
        inputs = tiny.inputs(routed, timestep)
        with torch.no_grad():
            outputs = [call(**inputs) for call in (expected, called)]
        outputs = [output if torch.is_tensor(output) else output.sample for output in outputs]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_mixed_timesteps_by_forward(tiny, routed):
    inputs = tiny.inputs(routed, [100, 900])
    with record_routing(routed) as log, torch.no_grad():
        routed.forward(**inputs)
    assert [entry.kept().sum(1).tolist() for entry in log] == [[52, 13]] * tiny.layers


def test_a_block_alone_tells_what_it_lacks(tiny, routed):
    x = torch.randn(2, 64, 32)
    if hasattr(routed, "adaln_single"):
        with pytest.raises(RuntimeError, match="embeds its timestep"):
            routed.transformer_blocks[0](x, timestep=torch.zeros(2, 192))
    else:
        with pytest.raises(ValueError, match="timestep"):
            routed.transformer_blocks[0](
                x, timestep=torch.full((2,), 5000), class_labels=torch.zeros(2).long()
            )


SCHEDULERS = {
    "EDM": (EDMEulerScheduler(), (-1.6, 1.1)),
    "flow": (FlowMatchEulerDiscreteScheduler(), "training"),
    "noise levels": (None, "noise"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_timesteps_of_other_schedulers_lie_in_their_units(tiny, model, name):
    scheduler, units = SCHEDULERS[name]
    tiny.route(model, 0.0, num_regions=4, overrides={0: RATIOS}, timestep_units=units)
    if scheduler is None:
        timesteps = torch.linspace(1, 0, 20)
    else:
        scheduler.set_timesteps(20)
        timesteps = scheduler.timesteps
    seen = set()
    for timestep in timesteps:
        seen |= kept(model, lambda timestep=timestep: tiny.run(model, tiny.inputs(model, timestep.expand(2))))
    assert seen == {64, *KEPT.values()}  # layers without an override keep all


@pytest.mark.parametrize("timestep", [5000.0, -30.0, float("nan")])
@pytest.mark.parametrize("way", ["call", "forward"])
def test_timesteps_of_no_region_are_refused(tiny, routed, timestep, way):
    inputs = tiny.inputs(routed, [timestep, timestep])
    with pytest.raises(ValueError, match="timestep"):
        (routed if way == "call" else routed.forward)(**inputs)
