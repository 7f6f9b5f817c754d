"""What is around a model while it is routed: inference_mode, storages, wrappers whose reducer was set up."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    diffratio_loss,
    freeze_ratios,
    learn_ratios,
    load_diffratio,
    remove_diffratio,
    save_diffratio,
    summary,
)

HALF = DiffRatioConfig(0.5)


def routers(model):
    return [block.diffratio.router_weight for block in model.transformer_blocks]


def train(tiny, model):
    """One step of everything that has a gradient."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = tiny.run(model, tiny.inputs(model), grad=True).square().mean()
    if "diffratio_ratios" in model._modules:
        loss = loss + diffratio_loss(model, 0.5, 1.0)
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_routers_made_in_a_mode_without_gradients_train_outside_of_it(tiny, model, mode):
    with mode():
        apply_diffratio(model, HALF)
        apply_diffratio(model, DiffRatioConfig(0.3))
    before = [weight.detach().clone() for weight in routers(model)]
    train(tiny, model)
    assert all(weight.requires_grad and not weight.is_inference() for weight in routers(model))
    assert not any(map(torch.equal, before, routers(model)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_ratios_learned_frozen_and_loaded_in_a_mode_without_gradients(tiny, model, mode, tmp_path):
    with mode():
        apply_diffratio(model, HALF)
        table = learn_ratios(model, start=0.55)
    train(tiny, model)
    assert table.ratios.grad.abs().max() > 0
    twin = copy.deepcopy(model)
    with mode():
        save_diffratio(model, tmp_path)
        tenths = freeze_ratios(model)
        load_diffratio(remove_diffratio(twin), tmp_path)
    assert [[round(10 * ratio) for ratio in row.kept_ratio] for row in summary(twin)] == tenths
    train(tiny, twin)
    train(tiny, model)


def test_a_copy_of_learned_ratios_made_in_inference_mode_follows_its_values(tiny, model):
    learn_ratios(tiny.route(model), start=1.0)
    with torch.inference_mode():
        twin = copy.deepcopy(model)
        assert tiny.kept(twin, tiny.inputs(model)) == [[64, 64]] * tiny.layers
        twin.diffratio_ratios.ratios.fill_(0.4)
    assert tiny.kept(twin, tiny.inputs(model)) == [[26, 26]] * tiny.layers


def test_a_model_made_in_inference_mode_runs_everywhere(tiny):
    with torch.inference_mode():
        model = tiny.pixart()
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    apply_diffratio(model, DiffRatioConfig(0.0, rescale="none"))
    with torch.inference_mode():
        inside = tiny.run(model, inputs)
    hook = model.transformer_blocks[0].ff.register_forward_hook(lambda *_: None)
    for output in (inside, tiny.run(model, inputs)):
        torch.testing.assert_close(output, dense, rtol=0, atol=1e-5)
    hook.remove()
    torch.testing.assert_close(tiny.run(remove_diffratio(model), inputs), dense, rtol=0, atol=0)


def test_every_weight_keeps_a_storage_of_its_own(tiny, model, tmp_path):
    """What saves models drops weights that share memory, and routing runs on the weights as they lie."""
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    tiny.route(model)
    learn_ratios(model)
    for grad in (False, True):
        tiny.run(model, tiny.inputs(model), grad)
    parameters = dict(model.named_parameters())
    assert all(parameters[name].data_ptr() == place for name, place in places.items())
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in parameters.values())
    save_model(model, tmp_path / "model.safetensors")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert load_model(twin, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(tiny.run(twin, tiny.inputs(model)), tiny.run(model, tiny.inputs(model)))


def test_blocks_that_share_their_weights_stay_shared(tiny, model):
    """Weight tying between layers: each has a router of its own."""
    for name in ("attn1", "ff"):
        setattr(model.transformer_blocks[1], name, getattr(model.transformer_blocks[0], name))
    tiny.route(model)
    inference, training = (tiny.run(model, tiny.inputs(model), grad) for grad in (False, True))
    torch.testing.assert_close(inference, training.detach(), rtol=0, atol=1e-5)
    assert len({weight.data_ptr() for weight in routers(model)}) == tiny.layers
    remove_diffratio(model)
    assert model.transformer_blocks[1].attn1 is model.transformer_blocks[0].attn1


@pytest.fixture
def processes(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Pipeline:
    def __init__(self, transformer):
        self.transformer = transformer


AROUND = {
    "DDP": DistributedDataParallel,
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "DDP of a compiled model": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
    "a pipeline": lambda model: Pipeline(DistributedDataParallel(model)),
    "fully_shard": fully_shard,
    "fully_shard of the blocks": lambda model: [*map(fully_shard, model.transformer_blocks), model][-1],
}


@pytest.mark.parametrize("around", AROUND)
def test_parameters_that_a_reducer_never_sees_are_refused_in_time(tiny, model, processes, around, tmp_path):
    wrapped = AROUND[around](model)
    names = [name for name, _ in model.named_parameters()]
    save_diffratio(tiny.route(type(model).from_config(model.config)), tmp_path)
    for change in (apply_diffratio, lambda model: load_diffratio(model, tmp_path)):
        with pytest.raises(ValueError, match="before wrapping it|before caches"):
            change(wrapped)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("change", [learn_ratios, remove_diffratio])
def test_a_reducers_parameters_neither_come_nor_go(tiny, model, processes, around, change):
    wrapped = AROUND[around](tiny.route(model))
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="before wrapping it"):
        change(wrapped)
    assert [name for name, _ in model.named_parameters()] == names
    apply_diffratio(wrapped, DiffRatioConfig(0.3))  # only counts
