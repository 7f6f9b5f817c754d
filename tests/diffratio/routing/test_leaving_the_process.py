"""Routed models that leave their process or surroundings: pickles, default dtypes, averages, wrappers."""

import copy
import io
import pickle
import subprocess
import sys

import cloudpickle
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    cache_text,
    diffratio_loss,
    disable_diffratio,
    freeze_ratios,
    learn_ratios,
    load_diffratio,
    record_routing,
    remove_diffratio,
    save_diffratio,
    summary,
)


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "oldest protocol": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save": torch_saved,
    "cloudpickle": lambda model: pickle.loads(cloudpickle.dumps(model)),
    "deepcopy": copy.deepcopy,
}
STATES = {
    "routed": lambda model: model,
    "disabled": disable_diffratio,
    "learning": lambda model: (learn_ratios(model, start=0.75), model)[1],
    "removed": remove_diffratio,
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("where", ["outside", "in contexts", "between forward and backward"])
def test_a_copy_does_what_the_model_does(tiny, model, state, copied, where):
    STATES[state](tiny.route(model, num_regions=2, overrides={0: [0.2, 0.7]}))
    inputs = tiny.inputs(model)
    tiny.run(model, inputs)
    if where == "in contexts" and state != "removed":
        with record_routing(model), cache_text(model):
            tiny.run(model, inputs)
            twin = COPIES[copied](model)
    elif where == "between forward and backward":
        loss = tiny.run(model, inputs, grad=True).sum()
        twin = COPIES[copied](model)
        loss.backward()
    else:
        twin = COPIES[copied](model)
    for timestep in (100, 900):
        inputs = tiny.inputs(model, timestep)
        for grad in (False, True):
            assert torch.equal(tiny.run(twin, inputs, grad), tiny.run(model, inputs, grad))
    if state != "removed":
        assert summary(twin).to_dict() == summary(model).to_dict()
        assert not any("diffratio" in name for name in remove_diffratio(twin).state_dict())


def test_a_pickle_is_opened_in_another_process(tiny, model, tmp_path):
    """One that has imported nothing."""
    tiny.route(model)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, tiny.inputs(model))))
    torch.save(tiny.run(model, tiny.inputs(model)), tmp_path / "output.pt")
    code = (
        "import pickle, torch\n"
        f"model, inputs = pickle.load(open({str(tmp_path / 'model.pkl')!r}, 'rb'))\n"
        "with torch.no_grad():\n"
        "    output = model(**inputs, return_dict=False)[0]\n"
        f"assert torch.equal(output, torch.load({str(tmp_path / 'output.pt')!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=[torch.bfloat16, torch.float64, torch.float16])
def default_dtype(request):
    """For the test to set; it is taken back here."""
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_adapters_and_learning_under_another_default_dtype(tiny, model, default_dtype, tmp_path):
    twin, third = copy.deepcopy(model), copy.deepcopy(model)
    inputs = tiny.inputs(model)
    torch.set_default_dtype(default_dtype)
    apply_diffratio(model, DiffRatioConfig(0.3, num_regions=2))
    table = learn_ratios(model, start=0.7)
    with torch.no_grad():
        table.ratios[0, 0] = 0.6123
        for block in model.transformer_blocks:
            block.diffratio.router_weight.copy_(torch.randn(32))
    assert table.ratios.dtype == torch.float32
    (tiny.run(model, inputs, grad=True).square().mean() + diffratio_loss(model, 0.5, 1.0)).backward()
    assert table.ratios.grad.dtype == torch.float32 and table.ratios.grad.abs().sum() > 0
    save_diffratio(model, tmp_path)
    load_diffratio(twin, tmp_path)
    freeze_ratios(model)
    output = tiny.run(model, inputs)
    assert output.dtype == torch.float32
    assert torch.equal(tiny.run(twin, inputs), output)
    assert torch.equal(tiny.run(twin, inputs, grad=True), tiny.run(model, inputs, grad=True))
    torch.set_default_dtype(torch.float32)
    load_diffratio(third, tmp_path)
    assert torch.equal(tiny.run(third, inputs), output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_dtype_save_and_load(tiny, model, dtype, tmp_path):
    model.to(dtype)
    twin = copy.deepcopy(model)
    save_diffratio(tiny.route(model), tmp_path)
    load_diffratio(twin, tmp_path)
    for grad in (False, True):
        assert torch.equal(
            tiny.run(twin, tiny.inputs(model), grad), tiny.run(model, tiny.inputs(model), grad)
        )


class RoutedPixArt:
    """What an EMAModel needs to write a routed model: a class that makes one."""

    @staticmethod
    def from_config(config):
        return apply_diffratio(PixArtTransformer2DModel.from_config(config), DiffRatioConfig(0.5))


def test_diffusers_average_of_a_routed_model_is_written(tiny, tmp_path):
    model = tiny.route(tiny.pixart())
    average = EMAModel(model.parameters(), model_cls=RoutedPixArt, model_config=model.config)
    output = tiny.run(model, tiny.inputs(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    average.save_pretrained(tmp_path)
    twin = PixArtTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    average.copy_to(apply_diffratio(twin, DiffRatioConfig(0.5)).parameters())
    assert torch.equal(tiny.run(twin, tiny.inputs(model)), output)


def test_an_average_saves_an_adapter(tiny, tmp_path):
    model = tiny.route(tiny.pixart())
    average, twin = EMAModel(model.parameters()), copy.deepcopy(remove_diffratio(copy.deepcopy(model)))
    output = tiny.run(model, tiny.inputs(model))
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.diffratio.router_weight.neg_()
    average.store(model.parameters())
    average.copy_to(model.parameters())
    save_diffratio(model, tmp_path)
    average.restore(model.parameters())
    assert torch.equal(tiny.run(load_diffratio(twin, tmp_path), tiny.inputs(model)), output)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "averaged twice": lambda model: AveragedModel(nn.DataParallel(model)),
}


@torch.no_grad()
def call(model, inputs, positional=False):
    if not positional:
        return model(**inputs).sample
    text = "encoder_hidden_states" in inputs
    order = ("hidden_states", "encoder_hidden_states", "timestep") if text else tuple(inputs)
    others = {name: value for name, value in inputs.items() if name not in order}
    return model(*(inputs[name] for name in order), **others).sample


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("first", ["apply", "wrap"])
@pytest.mark.parametrize("positional", [False, True])
def test_wrapped_models_route_and_are_controlled(tiny, model, wrapper, first, positional, tmp_path):
    config = DiffRatioConfig(0.5, num_regions=2, overrides={0: [0.2, 0.7]})
    dense = copy.deepcopy(model)
    wrapped = WRAPPERS[wrapper](apply_diffratio(model, config) if first == "apply" else model)
    if first == "wrap":
        apply_diffratio(wrapped, config)
    for timestep, kept in ((100, 52), (900, 20)):
        inputs = tiny.inputs(model, timestep)
        if wrapper == "compiled":  # nothing can be recorded inside of it
            eager = copy.deepcopy(model)
            torch.testing.assert_close(
                call(wrapped, inputs, positional), call(eager, inputs), rtol=1e-5, atol=1e-5
            )
            continue
        with record_routing(wrapped) as log:
            call(wrapped, inputs, positional)
        assert log[0].kept().sum(1).tolist() == [kept, kept]
    assert summary(disable_diffratio(wrapped)).enabled is False
    save_diffratio(wrapped, tmp_path)
    assert summary(load_diffratio(dense, tmp_path))[0].kept_ratio == (0.8, pytest.approx(0.3))
    remove_diffratio(wrapped)


def test_an_averaged_model_averages_routers_and_ratios(tiny, model):
    learn_ratios(tiny.route(model), start=1.0)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    with torch.no_grad():
        model.diffratio_ratios.ratios.fill_(0.4)
        model.transformer_blocks[0].diffratio.router_weight.zero_()
    average.update_parameters(model)
    assert [row.learned_ratio for row in summary(average)] == [(pytest.approx(0.7),)] * tiny.layers
    assert {tuple(kept) for kept in tiny.kept(average.module, tiny.inputs(model))} == {(45, 45)}
