"""ToMe: its matching is that of tomesd's published algorithm, and blocks run on what it merges."""

import pytest
import torch

from diffratio.baselines import apply_tome, remove_baseline
from diffratio.baselines.tome import Matching

SIZES = [(4, 4), (6, 2), (2, 8), (5, 4), (4, 7), (3, 3)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matching_is_that_of_the_algorithm(size, plain):
    """Over 100 draws in all: who merges into whom, the means, and what comes back."""
    generator = torch.Generator().manual_seed(sum(size))
    tokens = size[0] * size[1]
    for draw in range(17):
        x, z = torch.randn(2, 2, tokens, 5, generator=generator)
        choice = torch.randint(4, (size[0] // 2, size[1] // 2), generator=generator)
        count = 1 + draw % (tokens - choice.numel())
        matching = Matching(x, size, count, choice)
        merged = matching.merge(z)
        assert merged.shape == (2, tokens - count, 5)
        out = matching.unmerge(merged)
        for sample in range(2):
            into = plain.merging(x[sample], size, count, choice)
            found = zip(matching.merging[sample], matching.goals[matching.into[sample]], strict=True)
            assert {int(source): int(goal) for source, goal in found} == into
            expected = plain.on_merged(z[sample], into, lambda rows: rows)
            torch.testing.assert_close(out[sample], expected)


def test_destinations_lie_on_the_odd_side_s_even_part():
    """A row or column that is left over is never a destination; without a choice it is the first of 2 x 2."""
    matching = Matching(torch.randn(1, 35, 3), (5, 7), 4)
    assert matching.goals.tolist() == [7 * row + column for row in (0, 2) for column in (0, 2, 4)]


def test_tokens_that_are_alike_come_back():
    x = torch.randn(2, 4, 6, 8).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    matching = Matching(x, (8, 12), 72, torch.randint(4, (4, 6)))
    torch.testing.assert_close(matching.unmerge(matching.merge(x)), x)


@pytest.mark.parametrize("merge", ["attn", "mlp", "all"])
@pytest.mark.parametrize("kind", ["pixart", "dit"])
def test_blocks_compute_on_merged_tokens(kind, merge, tiny, plain, block_calls, modulated):
    model = tiny.make(kind)
    inputs = tiny.inputs(model)
    inputs["hidden_states"] = inputs["hidden_states"][..., :6, :]  # 3 x 8 tokens
    apply_tome(model, 0.3, merge, seed=5)
    generator = torch.Generator().manual_seed(5)
    parts = {"all": ("attn", "cross", "mlp")}.get(merge, (merge,))
    for block, x, kwargs, out in block_calls(model, inputs)[:2]:
        choice = torch.randint(4, (1, 4), generator=generator)  # one draw for each block of the call
        for b in range(2):
            into = plain.merging(x[b], (3, 8), 7, choice)
            text, mask = (kwargs[name] for name in ("encoder_hidden_states", "encoder_attention_mask"))
            given = (None, None) if text is None else (text[b : b + 1], mask[b : b + 1])
            with torch.no_grad():
                expected = plain.tome_block(
                    block, x[b : b + 1], *given, modulated(block, kwargs, b), into, parts
                )
            torch.testing.assert_close(out[b : b + 1], expected, atol=1e-5, rtol=1e-5)


def test_an_odd_batch_draws_nothing(model, tiny):
    """As tomesd: the samples of a guided batch of one picture must not be merged each in its own way."""
    inputs, even = tiny.inputs(model, batch=3), tiny.inputs(model)
    apply_tome(model, 0.5, "mlp", seed=1)
    one, two = tiny.run(model, inputs), tiny.run(model, inputs)
    assert torch.equal(one, two) and not torch.equal(tiny.run(model, even), tiny.run(model, even))
    other = apply_tome(remove_baseline(model), 0.5, "mlp", seed=2)
    assert torch.equal(tiny.run(other, inputs), one)


def test_a_seed_says_what_is_drawn(model, tiny):
    inputs, found = tiny.inputs(model), []
    for seed in (1, 1, 2):
        found.append(tiny.run(apply_tome(model, 0.5, "mlp", seed=seed), inputs))
        remove_baseline(model)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("merge", ["attn", "mlp", "all"])
def test_nothing_merged_is_bit_equal(model, merge, tiny):
    inputs = tiny.inputs(model)
    dense = tiny.run(model, inputs)
    assert torch.equal(tiny.run(apply_tome(model, 0.0, merge), inputs), dense)
    remove_baseline(model)
    assert torch.equal(tiny.run(apply_tome(model, 0.015, merge), inputs), dense)  # int(64 * 0.015) = 0
