"""Adapters of a model that still learns its ratios: what is saved, what loading gives, what is refused."""

import copy
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffratio import freeze_ratios, learn_ratios, load_diffratio, save_diffratio, summary
from diffratio.routing.adapter import CONFIG_NAME, WEIGHTS_NAME
from diffratio.routing.ratios import table_of

VALUES = torch.tensor([[0.96, 0.34], [0.7, 0.44], [0.85, 1.0]])
NEAREST = [[10, 3], [7, 4], [9, 10]]


@pytest.fixture
def saved(tiny, tmp_path):
    """A dense PixArt, and a directory with the adapter of its learning copy."""
    model = tiny.pixart()
    learning = tiny.route(copy.deepcopy(model), num_regions=2)
    with torch.no_grad():
        learn_ratios(learning).ratios.copy_(VALUES)
    save_diffratio(learning, tmp_path / "adapter")
    return model, learning, tmp_path / "adapter"


def test_the_files_hold_ratios_mode_and_bins(saved):
    *_, directory = saved
    assert torch.equal(load_file(directory / WEIGHTS_NAME)["ratios"], VALUES)
    data = json.loads((directory / CONFIG_NAME).read_text())
    assert data["ratios"] == {"mode": "default", "bins": [10, 9, 8, 7, 6, 5, 4, 3]}
    assert data["config"]["overrides"] == {"0": [0.0, 0.7], "1": [0.3, 0.6], "2": [0.1, 0.0]}
    assert data["config"]["router_start"] == "identity"
    with safe_open(directory / WEIGHTS_NAME, "pt") as file:
        assert json.loads(file.metadata()["diffratio"]) == data


def test_loading_gives_the_plain_model_at_the_nearest_bins(tiny, saved):
    model, learning, directory = saved
    load_diffratio(model, directory)
    inputs = tiny.inputs(model, [900, 100])
    assert torch.equal(tiny.run(model, inputs), tiny.run(learning, inputs))
    assert freeze_ratios(learning) == NEAREST
    assert torch.equal(tiny.run(model, inputs), tiny.run(learning, inputs))
    assert model._diffratio_model.config == learning._diffratio_model.config
    assert {row.learned_ratio for row in summary(model)} == {None}
    assert not any("ratios" in name for name in model.state_dict())
    save_diffratio(learning, directory)
    assert "ratios" not in load_file(directory / WEIGHTS_NAME)


def test_loading_into_a_learning_model_ends_its_learning(tiny, saved):
    model, _, directory = saved
    learn_ratios(tiny.route(model, 0.9, num_regions=2), start=0.5)
    load_diffratio(model, directory)
    assert [list(row.kept_ratio) for row in summary(model)] == [[k / 10 for k in row] for row in NEAREST]
    with pytest.raises(ValueError, match="learns no ratios"):
        table_of(model)


@pytest.mark.parametrize("mode", ["default", "faithful"])
def test_saving_reads_what_a_moving_average_wrote_past_the_version_counter(tiny, tmp_path, mode):
    model = tiny.route(tiny.dit())
    table = learn_ratios(model, mode=mode)
    table.host()
    table.ratios.data.copy_(torch.tensor([[0.5], [0.4], [1.7 if mode == "faithful" else 1.0]]))
    save_diffratio(model, tmp_path)
    expected = torch.tensor([[0.5], [0.4], [1.0]])
    assert torch.equal(load_file(tmp_path / WEIGHTS_NAME)["ratios"], expected)
    load_diffratio(tiny.dit(), tmp_path)


def config(change):
    def corrupt(directory):
        path = directory / CONFIG_NAME
        data = json.loads(path.read_text())
        path.write_text(change(data) or json.dumps(data))

    return corrupt


def ratios(change):
    """`change` gives other ratios, None takes them away."""

    def corrupt(directory):
        tensors = load_file(directory / WEIGHTS_NAME)
        tensors["ratios"] = change(tensors["ratios"].clone())
        if tensors["ratios"] is None:
            del tensors["ratios"]
        save_file(tensors, directory / WEIGHTS_NAME)

    return corrupt


def header(text, size=None):
    """A safetensors file with that header."""

    def corrupt(directory):
        data = text.encode()
        (directory / WEIGHTS_NAME).write_bytes((size or len(data)).to_bytes(8, "little") + data + bytes(64))

    return corrupt


def at(value):
    return ratios(lambda r: r.index_put((torch.tensor([1]), torch.tensor([0])), torch.tensor(value)))


def entry(shape, offsets=(0, 64)):
    return json.dumps({"ratios": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})


MALFORMED = {
    "truncated": (lambda d: _cut(d, 30), "safetensors"),
    "cut in the ratios": (lambda d: _cut(d, -8), "safetensors"),
    "huge header": (header("{}", 2**40), "safetensors"),
    "header of 30 MB": (header(" " * 30_000_000), "safetensors"),
    "deep header": (header('{"a":' * 50_000 + "}" * 50_000), "safetensors"),
    "tensor of 2^60 numbers": (header(entry([2**60])), "safetensors"),
    "offsets past the end": (header(entry([16], (0, 640))), "safetensors"),
    "pickle under the name": (lambda d: (d / WEIGHTS_NAME).write_bytes(pickle.dumps({})), "safetensors"),
    "ratios are missing": (ratios(lambda r: None), "ratios is in diffratio_config.json"),
    "ratios are not announced": (config(lambda c: c.pop("ratios") and None), "ratios is in .*safetensors"),
    "NaN": (at(float("nan")), r"must all be in 0.3..1.0"),
    "infinity": (at(float("inf")), r"must all be in 0.3..1.0"),
    "above 1": (at(1.01), r"must all be in 0.3..1.0"),
    "below the bins": (at(0.29), r"must all be in 0.3..1.0"),
    "negative": (at(-0.7), r"must all be in 0.3..1.0"),
    "too few layers": (ratios(lambda r: r[:2].clone()), r"\(2, 2\), must be torch.float32 \(3, 2\)"),
    "too many regions": (ratios(lambda r: torch.cat([r, r], 1)), r"\(3, 4\), must be"),
    "flat": (ratios(torch.flatten), r"\(6,\), must be"),
    "integers": (ratios(lambda r: r.long()), "torch.int64"),
    "half precision": (ratios(lambda r: r.half()), "torch.float16"),
    "other bins than the config": (at(0.52), "nearest bins of ratios are not those of config"),
    "bins of nothing": (config(lambda c: c["ratios"].update(bins=[])), "bins=.* two or more"),
    "bin 11": (config(lambda c: c["ratios"].update(bins=[11, 3])), "bins=.* integers in 0..10"),
    "bins of floats": (config(lambda c: c["ratios"].update(bins=[1.0, 0.5])), "bins=.* integers in 0..10"),
    "bins twice": (config(lambda c: c["ratios"].update(bins=[10, 10, 3])), "bins=.* different"),
    "bins are a number": (config(lambda c: c["ratios"].update(bins=10)), "bins=10"),
    "unknown mode": (config(lambda c: c["ratios"].update(mode="fast")), "mode='fast'"),
    "mode is a list": (config(lambda c: c["ratios"].update(mode=["default"])), "mode="),
    "settings are a list": (config(lambda c: c.update(ratios=[10, 9])), "must hold mode and bins"),
    "a setting too many": (config(lambda c: c["ratios"].update(start=1)), "must hold mode and bins"),
    "a setting is missing": (config(lambda c: c["ratios"].pop("bins") and None), "must hold mode and bins"),
    "a config of 20 MB": (config(lambda c: json.dumps(c) + " " * 2**24), "longer than"),
    "a million layers": (config(lambda c: c.update(routed_layers=[""] * 10**6)), "more than 1000"),
    "deep config": (config(lambda c: '{"a":' * 10**5), "not JSON"),
}


def _cut(directory, length):
    path = directory / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:length])


def _refuse(*args, **kwargs):
    raise AssertionError("an adapter was unpickled")


@pytest.mark.parametrize("learning", [False, True], ids=["plain", "learning"])
@pytest.mark.parametrize(("corrupt", "text"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_adapter_is_refused_by_name_and_changes_nothing(
    tiny, saved, monkeypatch, corrupt, text, learning
):
    model, _, directory = saved
    if learning:
        learn_ratios(tiny.route(model, 0.7, num_regions=2), start=0.6)
    inputs = tiny.inputs(model, 900)
    before, output = tiny.snapshot(model), tiny.run(model, inputs)
    corrupt(directory)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, _refuse)
    monkeypatch.setattr(torch, "load", _refuse)
    with pytest.raises(ValueError, match=f"(?s)^directory: .*{text}"):
        load_diffratio(model, directory)
    assert tiny.snapshot(model) == before
    assert torch.equal(tiny.run(model, inputs), output)


def test_nothing_is_pickled_on_the_way_out_and_in(tiny, saved, monkeypatch):
    model, learning, directory = saved
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, _refuse)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, _refuse)
    save_diffratio(learning, directory)
    load_diffratio(model, directory)
    assert [list(row.kept_ratio) for row in summary(model)] == [[k / 10 for k in row] for row in NEAREST]
