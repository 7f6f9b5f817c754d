"""The reference equals the formulas of the paper written as loops over Python floats: no torch in here."""

import math
import random

import pytest
import torch

from diffratio_kernels import reference
from diffratio_kernels.testing.cases import ModBlockCase
from tools.checks.scores import expected_selection

CLOSE = 1e-12  # of values near 1: four thousand roundings of fp64, where a case has a few hundred
RESCALE = ("mlp", "residual", "output", "none")


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) if all(map(math.isfinite, a)) else math.nan


def linear(rows, weight, bias):
    return [[dot(row, w) + (bias[i] if bias else 0.0) for i, w in enumerate(weight)] for row in rows]


def modulated(row, shift, scale, eps):
    mean = math.fsum(row) / len(row)
    variance = math.fsum((v - mean) ** 2 for v in row) / len(row)
    return [
        (v - mean) / math.sqrt(variance + eps) * (1 + b) + a
        for v, a, b in zip(row, shift, scale, strict=True)
    ]


def attend(queries, keys, values, heads):
    """softmax(q k / sqrt(d)) v per head; nothing to attend to gives zeros."""
    out = [[0.0] * len(row) for row in queries]
    d = len(queries[0]) // heads if queries else 0
    for i, query in enumerate(queries):
        for at in range(0, heads * d, d):
            scores = [dot(query[at : at + d], key[at : at + d]) / math.sqrt(d) for key in keys]
            weights = [math.exp(score - max(scores)) for score in scores]
            for j, weight in enumerate(weights):
                for c in range(at, at + d):
                    out[i][c] += weight / math.fsum(weights) * values[j][c]
    return out


def gelu(v):
    return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


def finish(rescale, score, x, hidden, update):
    if rescale == "mlp":
        return hidden + score * update
    if rescale == "residual":
        return x + score * (hidden + update - x)
    return (score if rescale == "output" else 1.0) * (hidden + update)


def loop_mod_block(arguments, keep, eps, mlp_eps):
    """F(x, keep) from nested lists to nested lists, one sample after the other."""
    a = {name: v.tolist() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
    heads, out = a["num_heads"], []
    for b, x in enumerate(a["x"]):
        shift1, scale1, gate1, shift2, scale2, gate2 = a["modulation"][b]
        logits = [dot(row, a["router_weight"]) + (a["router_bias"] or [0.0])[0] for row in x]
        kept = expected_selection(logits, keep[b])

        normed = [modulated(x[i], shift1, scale1, eps) for i in kept]
        qkv, width = linear(normed, a["qkv_weight"], a["qkv_bias"]), len(shift1)
        query, key, value = ([row[c : c + width] for row in qkv] for c in (0, width, 2 * width))
        branch = linear(attend(query, key, value, heads), a["out_weight"], a["out_bias"])
        hidden = [
            [v + g * u for v, g, u in zip(x[i], gate1, row, strict=True)]
            for i, row in zip(kept, branch, strict=True)
        ]
        if a.get("context_kv") is not None:
            query = linear(hidden, a["cross_q_weight"], a["cross_q_bias"])
            text = a["context_kv"][b]
            text = text if a.get("context_lengths") is None else text[: a["context_lengths"][b]]
            attended = attend(query, [kv[0] for kv in text], [kv[1] for kv in text], heads)
            branch = linear(attended, a["cross_out_weight"], a["cross_out_bias"])
            hidden = [
                [v + u for v, u in zip(h, row, strict=True)] for h, row in zip(hidden, branch, strict=True)
            ]
        normed = [modulated(row, shift2, scale2, mlp_eps) for row in hidden]
        inner = [[gelu(v) for v in row] for row in linear(normed, a["fc1_weight"], a["fc1_bias"])]
        branch = linear(inner, a["fc2_weight"], a["fc2_bias"])

        done = [list(row) for row in x]
        for i, h, row in zip(kept, hidden, branch, strict=True):
            score = a["score_scale"] / (1 + math.exp(-logits[i]))
            done[i] = [finish(a["rescale"], score, v, h[c], gate2[c] * row[c]) for c, v in enumerate(x[i])]
        out.append(done)
    return out


def small_case(seed, rescale):
    """A float64 case with D = 16, N <= 9 and every other choice drawn from the seed."""
    draw = random.Random(seed)
    batch, tokens = draw.choice([1, 2, 3]), draw.choice([1, 2, 5, 9])
    text = draw.choice([None, 1, 4])
    keep = [draw.choice([0, 1, tokens, draw.randint(0, tokens)]) for _ in range(batch)]
    return ModBlockCase(
        seed=seed,
        batch=batch,
        tokens=tokens,
        heads=draw.choice([1, 2]),
        head_dim=8,
        hidden=12,
        text=text,
        ragged_text=text is not None and draw.random() < 0.6,
        keep=tuple(keep),
        biases=draw.random() < 0.6,
        router_bias=draw.random() < 0.5,
        rescale=rescale,
        score_scale=draw.choice([1.0, 2.0]),
        dtype=torch.float64,
    )


def assert_equals_loops(arguments, keep, **eps):
    eps = {"eps": 1e-6, "mlp_eps": 1e-6} | eps
    expected = torch.tensor(loop_mod_block(arguments, keep, **eps), dtype=torch.float64)
    actual = reference.mod_block(**arguments | {"keep": keep}, **eps)
    torch.testing.assert_close(actual, expected, rtol=0, atol=CLOSE, equal_nan=True)


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("seed", range(10))
def test_block_equals_loops(seed, rescale):
    case = small_case(10 * RESCALE.index(rescale) + seed, rescale)
    assert_equals_loops(case.arguments(), case.full_keep)


def test_the_loops_meet_every_edge():
    cases = [small_case(seed, RESCALE[seed // 10]) for seed in range(40)]
    lengths = [n for c in cases if c.ragged_text for n in c.arguments()["context_lengths"].tolist()]
    kept = [(k, c.tokens) for c in cases for k in c.keep]
    assert any(k == 0 for k, _ in kept) and any(k == n for k, n in kept) and any(0 < k < n for k, n in kept)
    assert any(len(set(c.keep)) > 1 for c in cases) and 0 in lengths and any(c.text is None for c in cases)


def test_each_layer_norm_has_its_own_eps():
    case = ModBlockCase(seed=0, tokens=5, heads=2, head_dim=8, keep=(3,), dtype=torch.float64)
    assert_equals_loops(case.arguments(), case.full_keep, eps=0.3, mlp_eps=0.7)


@pytest.mark.parametrize("bias", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("rescale", RESCALE)
def test_non_finite_logits_keep_the_first_tokens_and_set_the_score(bias, rescale):
    """Equal logits keep the lowest tokens; the score is 1, 0 or NaN, and only kept rows see it."""
    case = ModBlockCase(
        seed=3, tokens=5, heads=2, head_dim=8, keep=(2,), rescale=rescale, dtype=torch.float64
    )
    arguments = case.arguments() | {"router_bias": torch.tensor([bias], dtype=torch.float64)}
    assert_equals_loops(arguments, case.full_keep)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_a_broken_token_that_is_not_kept_spoils_no_other(value):
    case = ModBlockCase(seed=4, tokens=5, heads=2, head_dim=8, keep=(4,), dtype=torch.float64)
    arguments = case.arguments()
    arguments["x"][:, 2] = math.nan  # its logit is NaN, below all others
    arguments["x"][:, 2, 0] = value
    assert_equals_loops(arguments, case.full_keep)
    out = reference.mod_block(**arguments | {"keep": case.full_keep})
    assert out[:, [0, 1, 3, 4]].isfinite().all()


def test_no_text_adds_the_bias_of_the_projection_and_nothing_else():
    case = ModBlockCase(seed=5, tokens=4, heads=2, head_dim=8, keep=(4,), dtype=torch.float64)
    without = case.arguments() | {"context_lengths": torch.zeros(2, dtype=torch.int32)}
    bias = {"cross_out_bias": torch.zeros(16, dtype=torch.float64)}
    no_cross = {k: v for k, v in without.items() if not k.startswith(("cross", "context"))}
    keep = {"keep": case.full_keep}
    assert torch.equal(reference.mod_block(**without | bias | keep), reference.mod_block(**no_cross | keep))
    assert_equals_loops(without, case.full_keep)
