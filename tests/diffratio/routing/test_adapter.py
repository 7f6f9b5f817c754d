"""Adapters: the same bits after a round trip, a named error for every bad one, and no half-written files."""

import copy
import json
import pathlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffratio import DiffRatioConfig, apply_diffratio, load_diffratio, save_diffratio, summary
from diffratio.routing import adapter
from diffratio.routing.find import routed_blocks

CONFIG, WEIGHTS = adapter.CONFIG_NAME, adapter.WEIGHTS_NAME
FIRST = "transformer_blocks.0.diffratio.router_weight"
FP8 = torch.float8_e4m3fn
SETTINGS = {"num_regions": 2, "overrides": {0: [0.2, 0.6]}, "rescale": "residual"}


def config(change):
    """A broken adapter: `change` edits what the JSON file holds."""

    def corrupt(directory):
        data = json.loads((directory / CONFIG).read_text())
        data = change(data) or data
        (directory / CONFIG).write_text(data if isinstance(data, str) else json.dumps(data))

    return corrupt


def weights(change):
    """A broken adapter: `change` edits the dict of tensors."""

    def corrupt(directory):
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS)

    return corrupt


def raw(change):
    """A broken adapter: `change` edits the bytes of the weights."""
    return lambda d: (d / WEIGHTS).write_bytes(change((d / WEIGHTS).read_bytes()))


class Bomb:
    """Unpickling this creates a file."""

    path = None

    def __reduce__(self):
        return pathlib.Path.touch, (Bomb.path,)


def pickled(directory):
    Bomb.path = directory.parent / "unpickled"
    torch.save({FIRST: torch.ones(32), "bomb": Bomb()}, directory / WEIGHTS)


MALFORMED = {
    "no directory": shutil.rmtree,
    "no config": lambda d: (d / CONFIG).unlink(),
    "no weights": lambda d: (d / WEIGHTS).unlink(),
    "config is a directory": lambda d: ((d / CONFIG).unlink(), (d / CONFIG).mkdir()),
    "weights are a directory": lambda d: ((d / WEIGHTS).unlink(), (d / WEIGHTS).mkdir()),
    "directory is a file": lambda d: (shutil.rmtree(d), d.write_text("{}")),
    "empty config": config(lambda c: " "),
    "config is not JSON": config(lambda c: "{format: 1}"),
    "config is a list": config(lambda c: [c]),
    "config is nested too deeply": config(lambda c: "[" * 100_000),
    "config has a number too long": config(lambda c: '{"format": ' + "9" * 5000 + "}"),
    "config is not text": lambda d: (d / CONFIG).write_bytes(b"\xff\xfe{}"),
    "format of the future": config(lambda c: c.update(format=2)),
    "no format": config(lambda c: c.pop("format") and None),
    "no settings": config(lambda c: c.pop("config") and None),
    "settings are a string": config(lambda c: c.update(config="0.3")),
    "unknown setting": config(lambda c: c["config"].update(compresion=0.3)),
    "missing setting": config(lambda c: c["config"].pop("rescale") and None),
    "bad compression": config(lambda c: c["config"].update(compression=0.33)),
    "compression is NaN": config(lambda c: c["config"].update(compression=float("nan"))),
    "bad override": config(lambda c: c["config"].update(overrides={"0": [0.1]})),
    "override of a missing layer": config(lambda c: c["config"].update(overrides={"9": 0.1})),
    "no layer names": config(lambda c: c.pop("routed_layers") and None),
    "layer names are numbers": config(lambda c: c.update(routed_layers=[0, 1, 2])),
    "other layer names": config(lambda c: c.update(routed_layers=["a", "b", "c"])),
    "fewer layers": config(lambda c: c["routed_layers"].pop() and None),
    "layers in another order": config(lambda c: c["routed_layers"].reverse()),
    "empty weights": raw(lambda b: b""),
    "truncated weights": raw(lambda b: b[:-4]),
    "weights cut in the header": raw(lambda b: b[:40]),
    "huge header": raw(lambda b: (2**60).to_bytes(8, "little") + b[8:]),
    "header is not JSON": raw(lambda b: b[:8] + b"?" * (len(b) - 8)),
    "renamed pickle": pickled,
    "no tensors": weights(dict.clear),
    "missing tensor": weights(lambda w: w.pop(FIRST)),
    "extra tensor": weights(lambda w: w.update(extra=torch.ones(1))),
    "renamed tensor": weights(lambda w: w.update({"router_weight": w.pop(FIRST)})),
    "wrong width": weights(lambda w: w.update({FIRST: torch.ones(31)})),
    "wrong rank": weights(lambda w: w.update({FIRST: torch.ones(32, 1)})),
    "integers": weights(lambda w: w.update({FIRST: torch.ones(32, dtype=torch.int64)})),
    "NaN": weights(lambda w: w[FIRST].fill_(float("nan"))),
    "infinity": weights(lambda w: w[FIRST][5:6].fill_(float("-inf"))),
    "NaN in eight bits": weights(lambda w: w.update({FIRST: torch.full((32,), float("nan")).to(FP8)})),
}


@pytest.fixture
def saved(tiny, tmp_path):
    """A directory with a good adapter of a PixArt, and its dense model."""
    model = tiny.pixart()
    save_diffratio(tiny.route(copy.deepcopy(model), 0.4, **SETTINGS), tmp_path / "adapter")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("settings", [SETTINGS, {"router_bias": True, "router_start": "faithful"}])
def test_a_round_trip_gives_the_same_bits_in_a_fresh_model(tiny, model, tmp_path, settings):
    fresh, inputs = copy.deepcopy(model), tiny.inputs(model, 900)
    tiny.route(model, 0.4, **settings)
    if settings.get("router_bias"):
        model.transformer_blocks[1].diffratio.router_bias.data.fill_(0.7)
    save_diffratio(model, tmp_path)
    assert load_diffratio(fresh, tmp_path) is fresh
    for grad in (False, True):
        assert torch.equal(tiny.run(fresh, inputs, grad), tiny.run(model, inputs, grad))
    assert fresh._diffratio_model.config == model._diffratio_model.config
    assert [row.path for row in summary(fresh)] == ["mod_block"] * tiny.layers


def test_an_adapter_holds_the_routers_alone(tiny, saved):
    model, directory = saved
    assert sorted(path.name for path in directory.iterdir()) == [CONFIG, WEIGHTS]
    names = {f"transformer_blocks.{i}.diffratio.router_weight" for i in range(tiny.layers)}
    assert load_file(directory / WEIGHTS).keys() == names
    data = json.loads((directory / CONFIG).read_text())
    assert data["base_model_class"] == "PixArtTransformer2DModel"
    assert DiffRatioConfig.from_dict(data["config"]) == DiffRatioConfig(0.4, **SETTINGS)


def test_loading_into_a_patched_model_replaces_its_counts_and_routers(tiny, saved):
    model, directory = saved
    expected = tiny.run(load_diffratio(copy.deepcopy(model), directory), tiny.inputs(model))
    apply_diffratio(model, DiffRatioConfig(0.9, overrides={1: 0.0}))
    routers = [block.diffratio for block in routed_blocks(model)]
    load_diffratio(model, directory)
    assert torch.equal(tiny.run(model, tiny.inputs(model)), expected)
    assert all(block.diffratio is r for block, r in zip(routed_blocks(model), routers, strict=True))


def test_loading_into_routers_of_another_kind_is_an_error_that_changes_nothing(tiny, saved):
    model, directory = saved
    apply_diffratio(model, DiffRatioConfig(router_start="faithful"))
    before = tiny.snapshot(model)
    with pytest.raises(ValueError, match="router_start='identity' differs"):
        load_diffratio(model, directory)
    assert tiny.snapshot(model) == before


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_an_adapter_for_another_number_of_layers_tells_both(tiny, saved, tmp_path, patched):
    model = tiny.pixart(num_layers=5)
    tables = {layer: 0.2 for layer in range(5)}
    save_diffratio(tiny.route(model, 0.4, overrides=tables), tmp_path / "five")
    smaller = tiny.route(saved[0], 0.7) if patched else saved[0]
    before = tiny.snapshot(smaller)
    with pytest.raises(ValueError, match="made for 5 routed layers, the model has 3"):
        load_diffratio(smaller, tmp_path / "five")
    assert tiny.snapshot(smaller) == before


def test_a_bfloat16_model_takes_an_adapter(tiny, saved):
    model, directory = saved
    load_diffratio(model.to(torch.bfloat16), directory)
    assert tiny.run(model, tiny.inputs(model)).isfinite().all()


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
@pytest.mark.parametrize("corrupt", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_adapter_names_directory_and_changes_nothing(tiny, saved, corrupt, patched):
    model, directory = saved
    inputs = tiny.inputs(model, 900)
    if patched:
        tiny.route(model, 0.7)
    before, output = tiny.snapshot(model), tiny.run(model, inputs)
    corrupt(directory)
    with pytest.raises(ValueError, match="^directory: "):
        load_diffratio(model, directory)
    assert tiny.snapshot(model) == before
    assert torch.equal(tiny.run(model, inputs), output)
    assert not (directory.parent / "unpickled").exists()


@pytest.mark.parametrize("failing", ["save_file", "write_text"])
def test_a_failing_save_leaves_the_old_files_and_nothing_else(tiny, saved, monkeypatch, failing):
    model, directory = saved
    before = {path.name: path.read_bytes() for path in directory.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(*((adapter, failing) if failing == "save_file" else (pathlib.Path, failing)), fail)
    with pytest.raises(OSError, match="No space"):
        save_diffratio(tiny.route(model, 0.8), directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_save_pretrained_of_a_patched_model_holds_the_dense_weights_too(tiny, model, tmp_path):
    dense = copy.deepcopy(model)
    tiny.route(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(tiny.run(again.eval(), tiny.inputs(model)), tiny.run(dense, tiny.inputs(model)))
