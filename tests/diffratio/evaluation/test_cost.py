import pytest
import torch

from diffratio import disable_diffratio, summary
from diffratio.evaluation.cost import compare, model_cost
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.routing.find import routed_layers, routed_model
from diffratio_kernels import kept_tokens


def test_compare_runs_every_setting_in_turns_and_leaves_the_model_as_it_was(tiny):
    model = tiny.route(tiny.make("dit"), 0.5, num_regions=2, overrides={1: [0.2, 0.9]})
    config, seen = routed_model(model).config, []

    def call():
        shared = routed_model(model)
        seen.append([layer.kept for layer in routed_layers(model)] if shared.enabled else "dense")
        return torch.empty(1000 * (1 + len(seen) % 3))

    disable_diffratio(model)
    results = compare(model, call, repeats=2, description="", progress=False)
    keep_all, sparse = [[10, 10]] * 3, [[5, 5], [8, 1], [5, 5]]
    # once untimed and once timed in each of two turns, and once for the memory
    turn = [setting for setting in ("dense", keep_all, sparse) for _ in range(2)]
    assert seen == turn * 2 + ["dense", keep_all, sparse]
    assert results["dense"]["peak_megabytes"] == pytest.approx(1000 * 4 * 2 / 1e6, rel=0.2)
    assert results.keys() == {"dense", "all_tokens", "sparse"}
    assert routed_model(model).config == config and not summary(model).enabled


def test_compare_puts_things_back_after_an_error(tiny):
    model = tiny.route(tiny.make("dit"), 0.5)
    with pytest.raises(ZeroDivisionError):
        compare(model, lambda: 1 / 0, repeats=1, description="", progress=False)
    assert summary(model).enabled and [layer.kept for layer in routed_layers(model)] == [[5]] * 3


@pytest.mark.parametrize("kind, text", [("pixart", 6), ("dit", 0)])
def test_flops_are_the_mean_over_regions_and_follow_the_kept_tokens(tiny, kind, text):
    model = tiny.route(tiny.make(kind), 0.5, num_regions=2, overrides={0: [0.0, 0.8]})
    cost = model_cost(model, batch=2, text_tokens=text, repeats=1, progress=False)
    shape = TransformerShape.from_model(model, text_tokens=text)
    each = [
        transformer_flops(shape, [kept_tokens(t, 64) for t in column], batch=2).total
        for column in ([10, 5, 5], [2, 5, 5])
    ]
    assert cost["sparse"]["gflop"] == pytest.approx(sum(each) / 2e9)
    assert cost["dense"]["gflop"] == transformer_flops(shape, batch=2).total / 1e9
    assert cost["sparse"]["gflop"] < cost["dense"]["gflop"] < cost["all_tokens"]["gflop"]
    assert all(one["milliseconds"] > 0 and one["peak_megabytes"] > 0 for one in cost.values())


def test_a_model_without_routers_is_refused(tiny):
    with pytest.raises(ValueError, match="has no diffratio blocks"):
        model_cost(tiny.make("dit"), batch=1, text_tokens=0)


def test_size_conditions_are_given_where_the_model_asks_for_them(tiny):
    model = tiny.route(
        tiny.make("pixart", use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=48),
        0.5,
    )
    assert model_cost(model, batch=1, text_tokens=6, repeats=1, progress=False)["sparse"]["milliseconds"] > 0
