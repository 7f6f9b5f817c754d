"""The list of blocks changes after apply: blocks are deleted, added, moved and copied out of their model."""

import copy
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    diffratio_loss,
    disable_diffratio,
    enable_diffratio,
    freeze_ratios,
    learn_ratios,
    load_diffratio,
    record_routing,
    remove_diffratio,
    save_diffratio,
    summary,
)

RATIOS = {0: [0.1, 0.5], 1: [0.3, 0.6], 2: [0.7, 0.9]}
TENTHS = {0: (0.9, 0.5), 1: (0.7, 0.4), 2: (0.3, 0.1)}


@pytest.fixture
def routed(tiny, model):
    return tiny.route(model, 0.2, num_regions=2, overrides=RATIOS)


def delete(blocks):
    del blocks[1]


def append(blocks):
    blocks.append(copy.deepcopy(blocks[0]))


def insert(blocks):
    blocks.insert(0, copy.deepcopy(blocks[2]))


def reorder(blocks):
    last = blocks[2]
    blocks[2], blocks[0] = blocks[0], last


def replace(blocks):
    blocks[1] = copy.deepcopy(blocks[2])


def swap_in_another_models(blocks):
    twin = copy.deepcopy(blocks)
    blocks[1] = twin[0]


CHANGES = {
    delete: [0, 2], append: [0, 1, 2, 0], insert: [2, 0, 1, 2], reorder: [2, 1, 0], replace: [0, 2, 2],
    swap_in_another_models: [0, 0, 2],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_everything_tells_the_layers_as_they_stand(tiny, routed, change, tmp_path):
    tiny.run(routed, tiny.inputs(routed))
    change(routed.transformer_blocks)
    origins = CHANGES[change]
    rows = summary(routed)
    assert [row.layer for row in rows] == list(range(len(origins)))
    assert [row.name for row in rows] == [f"transformer_blocks.{n}" for n in range(len(origins))]
    assert [row.kept_ratio for row in rows] == [TENTHS[n] for n in origins]
    for grad in (False, True):
        for region, timestep in enumerate((100, 900)):
            with record_routing(routed) as log:
                output = tiny.run(routed, tiny.inputs(routed, timestep), grad)
            assert [entry.layer for entry in log] == list(range(len(origins)))
            kept = [entry.kept()[0].sum().item() for entry in log]
            assert kept == [-(-round(10 * TENTHS[n][region]) * 64 // 10) for n in origins]
    save_diffratio(routed, tmp_path)
    written = json.loads((tmp_path / "diffratio_config.json").read_text())
    assert written["routed_layers"] == [row.name for row in rows]
    assert len(load_file(tmp_path / "diffratio_weights.safetensors")) == len(origins)
    twin = load_diffratio(remove_diffratio(copy.deepcopy(routed)), tmp_path)
    assert torch.equal(tiny.run(twin, tiny.inputs(routed)), tiny.run(routed, tiny.inputs(routed)))
    output = tiny.run(routed, tiny.inputs(routed))
    dense = tiny.run(disable_diffratio(routed), tiny.inputs(routed))
    assert torch.equal(dense, tiny.run(remove_diffratio(copy.deepcopy(routed)), tiny.inputs(routed)))
    assert torch.equal(tiny.run(enable_diffratio(routed), tiny.inputs(routed)), output)
    assert not any("diffratio" in name for name in remove_diffratio(routed).state_dict())


@pytest.mark.parametrize("when", ["before learning", "while learning"])
@pytest.mark.parametrize("change", CHANGES)
def test_ratios_belong_to_the_layers_as_they_stand(tiny, routed, change, when, tmp_path):
    apply_diffratio(routed, DiffRatioConfig(0.2, num_regions=2))
    blocks, origins = routed.transformer_blocks, CHANGES[change]
    if when == "before learning":
        change(blocks)
        table = learn_ratios(routed, start=0.75)
        assert table.ratios.shape == (len(origins), 2)
        values = [0.4 + 0.1 * n for n in range(len(origins))]
    else:
        table = learn_ratios(routed, start=0.75)
        change(blocks)
        values = [0.4 + 0.1 * n for n in range(3)]
    with torch.no_grad():
        table.ratios.copy_(torch.tensor(values)[:, None])
    table.invalidate()
    expected = values if when == "before learning" else [values[n] for n in origins]
    assert [row.learned_ratio[0] for row in summary(routed)] == pytest.approx(expected)
    loss = tiny.run(routed, tiny.inputs(routed), grad=True).square().mean()
    (loss + diffratio_loss(routed, 0.5, 1.0)).backward()
    save_diffratio(routed, tmp_path)
    saved = load_file(tmp_path / "diffratio_weights.safetensors")["ratios"]
    assert saved[:, 0].tolist() == pytest.approx(expected)
    tenths = freeze_ratios(routed)
    assert [row[0] / 10 for row in tenths] == [row.kept_ratio[0] for row in summary(routed)]
    assert len(tenths) == len(origins)
    apply_diffratio(routed, DiffRatioConfig(0.5, num_regions=2))
    assert {row.kept_ratio for row in summary(routed)} == {(0.5, 0.5)}


def test_a_copied_block_carries_one_block(tiny, routed):
    learn_ratios(routed)
    tiny.run(routed, tiny.inputs(routed), grad=True)
    block = routed.transformer_blocks[0]
    weights = sum(p.nbytes for p in block.parameters())
    ratios = sum(p.nbytes for p in routed.diffratio_ratios.parameters())
    dense = len(pickle.dumps(remove_diffratio(copy.deepcopy(routed)).transformer_blocks[0]))
    for size in (len(pickle.dumps(block)), len(pickle.dumps(copy.deepcopy(block)))):
        assert weights < size < dense + ratios + 20_000 < 2 * weights


class Holder(nn.Module):
    """Two copied blocks, as a ControlNet has them."""

    def __init__(self, blocks):
        super().__init__()
        self.copied = nn.ModuleList(copy.deepcopy(block) for block in blocks)

    def forward(self, x, **kwargs):
        for block in self.copied:
            x = block(x, **kwargs)
        return x


@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_copied_blocks_are_controlled_by_the_module_that_holds_them(tiny, kind):
    model = tiny.route(tiny.make(kind), 0.5)
    holder = Holder(model.transformer_blocks[:2])
    x = torch.randn(2, 64, 32)
    given = {"timestep": torch.randn(2, 6 * 32), "encoder_hidden_states": torch.randn(2, 6, 32)}
    if kind == "dit":
        given = {"timestep": torch.tensor([3, 4]), "class_labels": torch.tensor([0, 1])}
    with torch.no_grad():
        routed, whole = holder(x, **given), tiny.run(model, tiny.inputs(model))
        with record_routing(holder) as log:
            holder(x, **given)
        assert [(entry.layer, entry.kept().sum().item()) for entry in log] == [(0, 64), (1, 64)]
        assert [row.name for row in summary(holder)] == ["copied.0", "copied.1"]
        dense = disable_diffratio(holder)(x, **given)
        assert not torch.equal(dense, routed)
        assert not summary(holder).enabled and summary(model).enabled
        assert torch.equal(tiny.run(model, tiny.inputs(model)), whole)
        assert torch.equal(enable_diffratio(holder)(x, **given), routed)
        disable_diffratio(model)
        assert torch.equal(holder(x, **given), routed)
        assert torch.equal(remove_diffratio(holder)(x, **given), dense)
    assert not any("diffratio" in name for name in holder.state_dict())
    enable_diffratio(model)
    assert torch.equal(tiny.run(model, tiny.inputs(model)), whole)
