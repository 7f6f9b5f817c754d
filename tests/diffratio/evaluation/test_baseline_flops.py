"""FLOPs of baselines: what is counted is what runs, and Table 1's rows come out by name."""

import json
from contextlib import nullcontext

import pytest
import typer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from diffratio.baselines import apply_baseline
from diffratio.cli.flops import flops
from diffratio.evaluation.cost import model_cost
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.flops.baselines import baseline_kept
from diffratio.evaluation.flops.counted import Counting


@pytest.fixture
def counted(tiny):
    """FLOPs of one call of a model, by torch's counter without its hooks on all modules: under these a block
    calls its modules."""

    def counted(model, timestep=500):
        inputs = tiny.inputs(model, timestep)
        inputs.pop("encoder_attention_mask", None)
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = nullcontext()
        counter.mod_tracker.parents = {"Global"}
        with sdpa_kernel(SDPBackend.MATH), counter:
            tiny.run(model, inputs)
        with Counting() as counting:
            tiny.run(model, inputs)
        assert counting.count.flops == counter.get_total_flops()
        return counting.count.flops

    return counted


def formula(model, name):
    shape = TransformerShape.from_model(model, text_tokens=0 if "DiT" in type(model).__name__ else 6)
    kept, method = baseline_kept(name, shape)
    return transformer_flops(shape, kept, batch=2, method=method).total


@pytest.mark.parametrize("name", ["tome:mlp:0.3", "tome:attn:0.3", "tome:all:0.6", "atedm:0.3", "tome:all:0"])
def test_counts_are_those_of_torch(model, name, counted):
    assert formula(model, name) == counted(apply_baseline(model, name))


@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_open_layers_count_as_dense_in_the_noisiest_steps(kind, tiny, counted):
    """6 of 20 timesteps; the block that is left as it is is computed once."""
    model = tiny.make(kind, num_layers=7)
    apply_baseline(model, "atedm:0.3")
    expected = formula(model, "atedm:0.3")
    assert expected == (6 * counted(model, 700) + 14 * counted(model, 699)) / 20


def test_a_cost_is_beside_the_dense_model(tiny):
    model = apply_baseline(tiny.make("pixart"), "tome:mlp:0.5")
    cost = model_cost(model, batch=2, text_tokens=6, repeats=1, progress=False)
    assert list(cost) == ["dense", "tome:mlp:0.5"]
    assert cost["tome:mlp:0.5"]["gflop"] == formula(model, "tome:mlp:0.5") / 1e9
    shape = TransformerShape.from_model(model, text_tokens=6)
    assert cost["dense"]["gflop"] == transformer_flops(shape, batch=2).total / 1e9


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("tome:mlp:0.1", 16391.4),
        ("tome:mlp:0.2", 15421.2),
        ("atedm:0.2", 15132.7),
        ("mod:0.2:floor", 13949.3),
        ("mod:0.2", 13965.9),
    ],
)
def test_the_command_prints_the_rows_of_table_1_by_name(name, table):
    """All but the last, which keeps one token more: ours is rounded up."""
    app = typer.Typer()
    app.command()(flops)
    result = CliRunner().invoke(app, ["--baseline", name, "--batch", "16", "--json"])
    assert round(json.loads(result.stdout)["paper"]["total"] / 1e9, 1) == table
