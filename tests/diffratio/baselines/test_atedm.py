"""AT-EDM: the invariants of its ranking, and blocks that compute on what it keeps."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from diffratio import disable_diffratio, enable_diffratio
from diffratio.baselines import apply_atedm
from diffratio.baselines.atedm import AtEdm, page_rank
from diffratio_kernels.blocks.joint import every_row
from diffratio_kernels.blocks.products import run_of
from diffratio_kernels.blocks.routed import routed
from diffratio_kernels.blocks.stream import Call, Mlp, SelfAttention, Stream
from diffratio_kernels.types import HeadNorm, Linear, Rescale, RowNorm


@pytest.fixture
def maps():
    return torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)


def test_importance_is_conserved(maps):
    for iterations in (1, 2, 5, 20):
        torch.testing.assert_close(page_rank(maps, iterations).sum(-1), torch.ones(3, 2))


def test_one_iteration_is_the_attention_that_a_token_gets(maps):
    torch.testing.assert_close(page_rank(maps, 1), maps.mean(-2))


def test_many_iterations_end_where_the_map_leads(maps):
    rank = page_rank(maps.double(), 500)
    torch.testing.assert_close((rank[..., None, :] @ maps.double()).squeeze(-2), rank)


def test_tokens_that_no_one_attends_to_are_the_last(maps):
    maps[..., 4] = 0
    assert (page_rank(maps / maps.sum(-1, keepdim=True), 3)[..., 4] == 0).all()


@pytest.mark.parametrize("refill", ["copy", "residual"])
@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_blocks_compute_on_kept_tokens(kind, refill, tiny, plain, block_calls, modulated):
    model = tiny.make(kind)
    apply_atedm(model, 0.3, refill, iterations=3)
    for block, x, kwargs, out in block_calls(model, tiny.inputs(model))[:2]:
        for b in range(2):
            text, mask = (kwargs[name] for name in ("encoder_hidden_states", "encoder_attention_mask"))
            given = (None, None) if text is None else (text[b : b + 1], mask[b : b + 1])
            with torch.no_grad():
                expected, kept, source = plain.atedm_block(
                    block, x[b : b + 1], *given, modulated(block, kwargs, b), 44, 3, refill
                )
            assert len(kept) == 44  # floor(0.7 * 64)
            torch.testing.assert_close(out[b : b + 1], expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(out[b], out[b, source])  # pruned rows are those of their source, bit by bit


def test_a_ratio_is_the_decimal_number_that_was_written():
    kept = [AtEdm(ratio).left(tokens) for ratio, tokens in ((0.2, 1024), (0.9, 1000), (0.7, 10), (0.9, 5))]
    assert kept == [819, 100, 3, 1]


def test_attention_by_its_maps_is_the_block_s_own():
    """Of heads that share keys, with norms and a gate, where nothing is pruned."""

    def linear(columns, inner=32):
        return Linear(torch.randn(columns, inner) / inner**0.5, torch.randn(columns))

    own = SelfAttention((linear(32), linear(16), linear(16)), linear(32), 4, 2, HeadNorm(), gate=linear(32))
    x = torch.randn(2, 12, 32)
    image = Stream(x, torch.randn(2, 6, 32), own, Mlp(linear(64), linear(32, 64)), attention_norm=RowNorm())
    call, run = Call(image), run_of("mod_block", "auto", "auto", x, False)
    rows, logits = every_row(2, 12, x.device), torch.zeros(2, 12)
    dense, kept = (
        routed(one, rows, logits, Rescale("none"), run) for one in (call, AtEdm(0.0).alone(call, run, (3, 4)))
    )
    torch.testing.assert_close(kept, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "count", "is_open"),
    [
        (28, None, [0, 1, 2, 3, 24, 25, 26, 27]),
        (6, None, []),
        (6, 3, [0, 1, 5]),
        (4, 0, []),
        (2, 9, [0, 1]),
    ],
)
def test_open_layers_are_the_outer_ones(layers, count, is_open):
    baseline = AtEdm(0.2, open_layers=count)
    assert [n for n in range(layers) if baseline.is_open(n, layers)] == is_open
    assert [n for n in range(layers) if len(baseline.kept_ratios(n, layers)) == 2] == is_open
    assert AtEdm(0.2, open_layers=count, open_steps=0.0).kept_ratios(0, layers) == (0.8,)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_open_layers_are_open_in_6_of_20_steps(spacing, tiny):
    model = apply_atedm(tiny.make("pixart", num_layers=1), 0.5, open_layers=1)
    scheduler = DPMSolverMultistepScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(20)

    def is_open(timestep):
        inputs = tiny.inputs(model, timestep)
        out = tiny.run(enable_diffratio(model), inputs)
        return torch.equal(out, tiny.run(disable_diffratio(model), inputs))

    assert [is_open(timestep) for timestep in scheduler.timesteps.tolist()] == [True] * 6 + [False] * 14


def test_a_batch_of_several_timesteps_keeps_its_own_counts(tiny):
    model = apply_atedm(tiny.make("pixart"), 0.5, open_layers=2)
    inputs = tiny.inputs(model, [900, 100])
    both = tiny.run(model, inputs)
    for b in range(2):
        one = {name: t[b : b + 1] if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}
        torch.testing.assert_close(tiny.run(model, one), both[b : b + 1], atol=1e-5, rtol=1e-5)


def test_nothing_pruned_is_bit_equal(model, tiny):
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    assert torch.equal(tiny.run(apply_atedm(model, 0.0), inputs), dense)
