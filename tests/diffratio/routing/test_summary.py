"""summary: what was patched, how much each block keeps, which way it runs and why."""

import json

import pytest
import torch

from diffratio import (
    DiffRatioConfig,
    disable_diffratio,
    enable_diffratio,
    freeze_ratios,
    learn_ratios,
    remove_diffratio,
    summary,
)

SETTINGS = {"num_regions": 2, "overrides": {0: [0.1, 0.2], -1: 1.0}}


@pytest.fixture
def routed(tiny, model):
    return tiny.route(model, 0.3, **SETTINGS)


def test_every_layer_is_listed_in_order(tiny, routed):
    rows = summary(routed)
    assert [(row.layer, row.name) for row in rows] == [(i, f"transformer_blocks.{i}") for i in range(3)]
    assert [row.kept_ratio for row in rows] == [(0.9, 0.8), (0.7, 0.7), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [(64, [(58, 52), (45, 45), (0, 0)]), (100, [(90, 80), (70, 70), (0, 0)]), (1, [(1, 1), (1, 1), (0, 0)])],
)
def test_kept_tokens_at_a_given_n(routed, tokens, kept):
    rows = summary(routed, tokens=tokens)
    assert [row.kept_tokens for row in rows] == kept
    assert {row.tokens for row in rows} == {tokens}
    assert f"{kept[0][0]} {kept[0][1]} of {tokens}" in str(rows)


def test_kept_tokens_are_those_of_the_last_call_and_unknown_before_it(tiny, routed):
    assert {(row.tokens, row.kept_tokens) for row in summary(routed)} == {(None, None)}
    tiny.run(routed, tiny.inputs(routed))
    assert [row.kept_tokens for row in summary(routed)] == [(58, 52), (45, 45), (0, 0)]


@pytest.mark.parametrize("tokens", [0, -5, 2.5, True, "64"])
def test_a_number_of_tokens_that_is_none_is_a_named_error(routed, tokens):
    with pytest.raises(ValueError, match=f"tokens={tokens!r} must be a positive integer"):
        summary(routed, tokens=tokens)


def test_path_backend_and_reason_of_every_layer(routed):
    rows = summary(routed)
    assert {(row.path, row.reason) for row in rows} == {("mod_block", None)}
    assert {row.backend for row in rows} == {"cpu rows, sdpa attention"}
    linear = routed.transformer_blocks[1].ff.net[2]
    linear.register_forward_hook(lambda module, args, output: None)
    rows = summary(routed)
    assert [row.path for row in rows] == ["mod_block", "modules", "mod_block"]
    assert rows[1].backend == "cpu rows"
    assert [row.reason for row in rows] == [None, "ff.net.2: it carries hooks", None]
    assert "modules" in str(rows)
    assert "transformer_blocks.1 (ff.net.2: it carries hooks)" in str(rows)


def test_moved_weights_still_run_in_one_operator(routed):
    assert {(row.path, row.reason) for row in summary(routed.double())} == {("mod_block", None)}


def test_a_summary_asks_about_inference_whatever_the_grad_mode(routed):
    with torch.enable_grad():
        assert {row.path for row in summary(routed)} == {"mod_block"}
        assert torch.is_grad_enabled()


def test_a_head_dim_that_the_kernels_lack_runs_as_modules(tiny):
    model = tiny.route(tiny.pixart(attention_head_dim=12, cross_attention_dim=24))
    assert {row.reason for row in summary(model)} == {"attn1: head_dim 12 is not a multiple of 8"}
    inputs = tiny.inputs(model)
    assert torch.equal(tiny.run(model, inputs), tiny.run(model, inputs, grad=True))


def test_a_disabled_model_says_so(routed):
    assert "disabled" not in str(summary(routed))
    rows = summary(disable_diffratio(routed))
    assert not rows.enabled
    assert "diffratio is disabled: the blocks run dense" in str(rows)
    assert "disabled" not in str(summary(enable_diffratio(routed)))


def test_a_summary_is_json(routed):
    rows = summary(routed, tokens=64)
    data = json.loads(json.dumps(rows.to_dict()))
    assert data["enabled"] is True
    assert [layer["kept_tokens"] for layer in data["layers"]] == [[58, 52], [45, 45], [0, 0]]
    assert data["layers"][0].keys() == {
        "layer",
        "name",
        "kept_ratio",
        "kept_tokens",
        "tokens",
        "path",
        "backend",
        "reason",
        "learned_ratio",
        "untrained_router",
    }


def test_the_table_has_a_line_per_layer_under_its_heading(routed):
    lines = str(summary(routed, tokens=64)).splitlines()
    assert len(lines) == 4
    assert lines[0].split()[0] == "layer"
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]


def test_an_unpatched_model_is_an_error(model):
    with pytest.raises(ValueError, match=f"model {type(model).__name__} has no diffratio blocks"):
        summary(model)


def test_a_removed_model_is_an_error(routed):
    remove_diffratio(routed)
    with pytest.raises(ValueError, match="call apply_diffratio first"):
        summary(routed)


def test_a_summary_changes_nothing(tiny, routed):
    before = tiny.snapshot(routed)
    summary(routed, tokens=7)
    assert tiny.snapshot(routed) == before
    assert {row.tokens for row in summary(routed)} == {None}
    assert routed._diffratio_model.config == DiffRatioConfig(0.3, **SETTINGS)


def test_learned_ratios_stand_beside_the_bins_that_inference_takes(routed):
    assert {row.learned_ratio for row in summary(routed)} == {None}
    table = learn_ratios(routed)
    with torch.no_grad():
        table.ratios.copy_(torch.tensor([[0.96, 0.84], [0.31, 0.5], [0.75, 1.0]]))
    rows = summary(routed, tokens=10)
    assert [row.kept_ratio for row in rows] == [(1.0, 0.8), (0.3, 0.5), (0.8, 1.0)]
    assert [row.kept_tokens for row in rows] == [(10, 8), (3, 5), (8, 10)]
    assert rows[1].learned_ratio == pytest.approx((0.31, 0.5))
    assert "(0.310 0.500)" in str(rows)
    freeze_ratios(routed)
    assert {row.learned_ratio for row in summary(routed)} == {None}
