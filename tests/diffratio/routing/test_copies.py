"""copy.deepcopy, as for an EMA, and pickle: the copy runs its own weights, and neither touches the other."""

import copy
import io
import pickle

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    disable_diffratio,
    learn_ratios,
    remove_diffratio,
    summary,
)
from diffratio.routing.find import routed_blocks


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.fixture(params=[copy.deepcopy, pickled])
def pair(request, tiny, model):
    """A routed model with regions, run once, and its copy."""
    tiny.route(model, num_regions=2, overrides={0: [0.2, 0.7]})
    tiny.run(model, tiny.inputs(model), grad=True)
    return model, request.param(model)


@pytest.mark.parametrize("state", [disable_diffratio, remove_diffratio, learn_ratios])
def test_torch_saves_a_model_whole(tiny, model, state):
    state(tiny.route(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    for grad in (False, True):
        assert torch.equal(
            tiny.run(twin, tiny.inputs(model), grad), tiny.run(model, tiny.inputs(model), grad)
        )


def scale(model, factor):
    for block in model.transformer_blocks:
        for parameter in block.parameters():
            parameter.data.mul_(factor)


def test_a_copy_gives_the_same_output(tiny, pair):
    model, twin = pair
    inputs = tiny.inputs(model)
    assert {row.path for row in summary(twin)} == {"mod_block"}
    for grad in (False, True):
        assert torch.equal(tiny.run(twin, inputs, grad), tiny.run(model, inputs, grad))


@pytest.mark.parametrize("grad", [False, True])
def test_each_runs_its_own_weights(tiny, pair, grad):
    inputs = tiny.inputs(pair[0])
    for changed, other in (pair, pair[::-1]):
        before, others = tiny.run(changed, inputs, grad), tiny.run(other, inputs, grad)
        scale(changed, 1.5)
        assert (tiny.run(changed, inputs, grad) - before).abs().max() > 1e-2
        assert torch.equal(tiny.run(other, inputs, grad), others)


def test_a_copy_refers_to_no_block_of_the_original(pair):
    model, twin = pair
    for ours, theirs in zip(routed_blocks(model), routed_blocks(twin), strict=True):
        assert theirs.forward.__self__.block is theirs
        assert theirs._diffratio.model is twin._diffratio_model is not model._diffratio_model
        assert theirs.diffratio is not ours.diffratio
        assert theirs._diffratio.saved is not ours._diffratio.saved
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert storages.isdisjoint(p.untyped_storage().data_ptr() for p in twin.parameters())


def test_regions_and_recordings_of_the_two_are_apart(tiny, pair):
    model, twin = pair
    assert tiny.kept(model, tiny.inputs(model, 900))[0] == [20, 20]
    assert tiny.kept(twin, tiny.inputs(model, 100))[0] == [52, 52]
    apply_diffratio(twin, DiffRatioConfig(0.9, num_regions=2))
    assert tiny.kept(twin, tiny.inputs(model, 900)) == [[7, 7]] * tiny.layers
    assert tiny.kept(model, tiny.inputs(model, 900))[0] == [20, 20]


def test_removal_on_the_copy_leaves_the_original_routed(tiny, pair):
    model, twin = pair
    inputs = tiny.inputs(model)
    routed = tiny.run(model, inputs)
    remove_diffratio(twin)
    assert torch.equal(tiny.run(model, inputs), routed)
    dense = tiny.run(twin, inputs)
    assert not torch.allclose(dense, routed)
    assert torch.equal(tiny.run(disable_diffratio(model), inputs), dense)


def test_removal_on_the_original_leaves_the_copy_routed(tiny, pair):
    model, twin = pair
    routed = tiny.run(twin, tiny.inputs(model))
    remove_diffratio(model)
    assert torch.equal(tiny.run(twin, tiny.inputs(model)), routed)


def test_a_copy_of_a_removed_model_is_dense(tiny, pair):
    twin = copy.deepcopy(remove_diffratio(pair[0]))
    assert not routed_blocks(twin)
    assert torch.equal(tiny.run(twin, tiny.inputs(twin)), tiny.run(pair[0], tiny.inputs(twin)))


def test_a_copy_made_between_forward_and_backward_does_not_disturb_it(tiny, model):
    tiny.route(model)
    model.enable_gradient_checkpointing()
    inputs = tiny.inputs(model)
    tiny.run(model, inputs, grad=True).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss = tiny.run(model, inputs, grad=True).sum()
    twin = copy.deepcopy(model)
    loss.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))
    assert all(p.grad is None for p in twin.parameters())


def test_averages_of_diffusers_ema_reach_the_fused_path(tiny, model):
    tiny.route(model)
    inputs = tiny.inputs(model)
    average, first = EMAModel(model.parameters()), tiny.run(model, inputs)
    scale(model, 1.5)
    trained = tiny.run(model, inputs)
    average.store(model.parameters())
    average.copy_to(model.parameters())
    assert {row.path for row in summary(model)} == {"mod_block"}
    assert torch.equal(tiny.run(model, inputs), first)
    average.restore(model.parameters())
    assert torch.equal(tiny.run(model, inputs), trained)
    assert not torch.allclose(first, trained)


def test_diffusers_average_of_the_model_before_it_was_routed(tiny, model):
    """EMAModel knows parameters by their order alone: the model's own stand where they stood."""
    dense = copy.deepcopy(model)
    averages = EMAModel(model.parameters(), foreach=False), EMAModel(dense.parameters(), foreach=False)
    own = list(dense.named_parameters())
    tiny.route(model)
    assert [name for name, _ in model.named_parameters()][: len(own)] == [name for name, _ in own]
    for average, updated in zip(averages, (model, dense), strict=True):
        scale(updated, 1.5)
        average.step(updated.parameters())
        average.step(updated.parameters())
    of_routed, of_dense = (average.shadow_params for average in averages)
    assert all(torch.equal(a, b) for a, b in zip(of_routed, of_dense, strict=True))


def test_diffusers_average_is_written_as_the_model_is(tiny, model, tmp_path):
    tiny.route(model)
    average = EMAModel(model.parameters(), model_cls=type(model), model_config=model.config)
    scale(model, 1.5)
    average.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=False)
    average.copy_to(model.parameters())
    want = remove_diffratio(model).state_dict()
    assert read.state_dict().keys() == want.keys()
    assert all(torch.equal(value, want[name]) for name, value in read.state_dict().items())


def test_routers_stand_last_in_copies_and_wrappers(tiny, model):
    names = [name for name, _ in tiny.route(model).named_parameters()]
    assert names == sorted(names, key=lambda name: ".diffratio." in name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [name for name, _ in twin.named_parameters()] == names
        assert twin.named_modules._model is twin
    holder = nn.Sequential(nn.Linear(2, 2), model, nn.Linear(2, 2))
    assert [name for name, _ in holder.named_parameters()][2:-2] == [f"1.{name}" for name in names]
    assert "named_modules" not in vars(remove_diffratio(model))
