"""Routers that nothing has trained: said when they are about to skip tokens, and wherever one looks."""

import copy
import json
import warnings

import pytest
import torch

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    learn_ratios,
    load_diffratio,
    remove_diffratio,
    save_diffratio,
    summary,
)
from diffratio.cli.eval import print_report
from diffratio.evaluation.cost import compare
from diffratio.evaluation.target import Target
from diffratio.routing.find import routed_blocks
from diffratio.train import TrainArguments
from diffratio.train.model import add_routing

MESSAGE = "the routers are untrained"
ALL, NONE = [0, 1, 2], []


@pytest.fixture
def quiet():
    """Every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def untrained(model) -> list[int]:
    """As three places tell it, which must agree."""
    rows = summary(model)
    found = [row.layer for row in rows if row.untrained_router]
    assert [", untrained router" in line for line in str(rows).splitlines()[1:]] == [i in found for i in ALL]
    assert Target(model, "it").untrained_routers == found
    return found


@pytest.fixture
def fresh(model):
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        apply_diffratio(model, DiffRatioConfig(0.5))
    assert len(caught) == 1 and caught[0].filename == __file__
    return model


def test_fresh_routers_that_skip_are_a_warning(fresh):
    assert untrained(fresh) == ALL


def test_one_layer_that_skips_is_enough(model):
    with pytest.warns(UserWarning, match=MESSAGE):
        apply_diffratio(model, DiffRatioConfig(0.0, num_regions=2, overrides={-1: [0.0, 0.1]}))


def test_keeping_everything_is_none(model, quiet):
    apply_diffratio(model, DiffRatioConfig(0.0))
    assert untrained(model) == ALL
    learn_ratios(model)


def test_new_kept_counts_on_untrained_routers_are_one_again(model):
    apply_diffratio(model, DiffRatioConfig(0.0))
    with pytest.warns(UserWarning, match=MESSAGE):
        apply_diffratio(model, DiffRatioConfig(0.5))


def test_one_optimizer_step_trains_them(tiny, fresh, quiet):
    routers = [block.diffratio.router_weight for block in routed_blocks(fresh)]
    optimizer = torch.optim.AdamW(routers, lr=1e-3, weight_decay=0)
    with torch.no_grad():  # diffusers starts some layers at zero, behind which nothing can be seen
        for parameter in fresh.parameters():
            if all(parameter is not router for router in routers):
                parameter.add_(0.02 * torch.randn(parameter.shape))
    tiny.run(fresh, tiny.inputs(fresh), grad=True).square().mean().backward()
    assert untrained(fresh) == ALL
    optimizer.step()
    assert untrained(fresh) == NONE
    apply_diffratio(fresh, DiffRatioConfig(0.3))


@pytest.mark.parametrize("assign", [False, True])
def test_a_loaded_state_dict_trains_them(fresh, quiet, assign):
    state = {
        name: tensor + 1.0 if "diffratio" in name else tensor for name, tensor in fresh.state_dict().items()
    }
    fresh.load_state_dict(state, assign=assign)
    assert untrained(fresh) == NONE
    apply_diffratio(fresh, DiffRatioConfig(0.3))


def test_copies_casts_and_moves_do_not(fresh):
    assert untrained(copy.deepcopy(fresh)) == ALL
    assert untrained(fresh.bfloat16()) == ALL


def test_what_cannot_be_seen_is_not_called_untrained(tiny, model):
    apply_diffratio(model.to("meta"), DiffRatioConfig(0.5))
    assert untrained(model) == NONE


def test_a_trained_adapter_is_quiet_and_stays_trained(tiny, model, tmp_path, quiet):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny.route(model, 0.5)
    save_diffratio(model, tmp_path)
    assert "untrained_routers" not in json.loads((tmp_path / "diffratio_config.json").read_text())
    load_diffratio(remove_diffratio(model), tmp_path)
    assert untrained(model) == NONE
    save_diffratio(model, tmp_path)
    load_diffratio(model, tmp_path)
    assert untrained(model) == NONE


def test_an_adapter_of_untrained_routers_says_so_wherever_it_goes(fresh, tmp_path):
    with torch.no_grad():
        routed_blocks(fresh)[1].diffratio.router_weight.add_(1.0)
    save_diffratio(fresh, tmp_path / "one")
    for model in (remove_diffratio(copy.deepcopy(fresh)), fresh):
        with pytest.warns(UserWarning, match=MESSAGE) as caught:
            load_diffratio(model, tmp_path / "one")
        assert caught[0].filename == __file__
        assert untrained(model) == [0, 2]
        save_diffratio(model, tmp_path / "two")
        for name in ("diffratio_config.json", "diffratio_weights.safetensors"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("names", ["transformer_blocks.0", ["other"], [0], {"a": 1}])
def test_an_adapter_with_other_names_is_refused(fresh, tmp_path, names):
    save_diffratio(fresh, tmp_path)
    path = tmp_path / "diffratio_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"untrained_routers": names}))
    with pytest.raises(ValueError, match="untrained_routers that are no list of routed_layers"):
        load_diffratio(fresh, tmp_path)


@pytest.mark.parametrize("method", ["mod", "lt"])
def test_training_is_quiet(model, tmp_path, quiet, method):
    add_routing(model, TrainArguments(output_dir=str(tmp_path), method=method, target_compression=0.3))
    assert untrained(model) == ALL


def test_measuring_is_quiet(tiny, fresh, quiet):
    inputs = tiny.inputs(fresh)
    with torch.inference_mode():
        compare(fresh, lambda: fresh(**inputs), repeats=1, description="", progress=False)


@pytest.mark.parametrize(("layers", "said"), [([0, 2], True), ([], False)])
def test_the_report_of_eval_names_them(capsys, layers, said):
    cost = dict.fromkeys(("gflop", "milliseconds", "peak_megabytes"), 1.0)
    cost["layers"] = {"milliseconds": [1.0], "peak_megabytes": [1.0]}
    report = {
        "name": "it", "untrained_routers": layers, "quality": None, "why_no_quality": "no data", "batch": 1,
        "dtype": "float32", "device": "cpu", "mean_kept": 0.5,
        "published_of_dense": {}, "layers_by": "a watch", "baseline": None,
        "cost": dict.fromkeys(("dense", "all_tokens", "sparse"), cost),
    }  # fmt: skip
    print_report(report)
    assert (
        "untrained routers, which skip tokens at random: layers [0, 2]" in capsys.readouterr().out
    ) is said
