"""`route`: logits, the best tokens of each sample, offsets under CUDA graphs, autocast."""

import weakref

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels import reference
from diffratio_kernels.ops.route import cu_seqlens


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", torch.float64), ("triton", torch.float32), ("reference", torch.float64)]
)
def test_the_best_tokens_of_each_sample_are_kept_those_of_the_small_bin_first(backend, dtype):
    x, weight = torch.randn(2, 6, 8, dtype=dtype), torch.randn(8, dtype=dtype)
    keep, small = [3, 5], [1, 4]
    router = {"router_bias": torch.tensor([0.5], dtype=dtype), "keep_small": small, "backend": backend}
    index, offsets, logits = dk.route(x, weight, keep, **router)
    torch.testing.assert_close(logits, (x * weight).sum(-1) + 0.5)
    expected = []
    for b in range(2):
        best = [6 * b + i for i in logits[b].argsort(descending=True).tolist()]
        expected += sorted(best[: small[b]]) + sorted(best[small[b] : keep[b]])
    assert index.tolist() == expected and offsets.tolist() == [0, 3, 8]


ROUTES = [
    ("cpu", torch.float64),
    ("cpu", torch.bfloat16),
    ("triton", torch.float32),
    ("reference", torch.float64),
]
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(("backend", "dtype"), ROUTES)
def test_logits_of_ones_own_select_as_a_routers(backend, dtype):
    """In at least fp32, which the gradient comes back from in their own dtype."""
    logits = torch.tensor([[1, 3, 3, -INF, 2], [NAN, 0.0, -0.0, 0, 5]], dtype=dtype).requires_grad_()
    index, offsets, out = dk.route(None, None, [2, 3], logits=logits, keep_small=[1, 2], backend=backend)
    assert index.tolist() == [1, 2, 6, 9, 7] and offsets.tolist() == [0, 2, 5]
    assert out.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(out.isnan(), logits.isnan()) and torch.equal(out[0], logits[0].to(out.dtype))
    out.backward(torch.arange(10, dtype=out.dtype).view(2, 5))
    assert torch.equal(logits.grad, torch.arange(10, dtype=dtype).view(2, 5))


@pytest.mark.parametrize("score_scale", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("backend", "dtype"), ROUTES)
def test_pinned_tokens_are_kept_whatever_their_logits(backend, dtype, score_scale):
    """In their places among the kept ones, and in the small bin; the others by their logits, +inf among them;
    their factor is 1, their logits have no gradient."""
    logits = torch.tensor([[9, NAN, 1, INF, 1, INF], [-INF, 2, 2, 2, -3, 1]], dtype=dtype).requires_grad_()
    pinned = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    option = {"logits": logits, "pinned": pinned, "score_scale": score_scale, "backend": backend}
    index, offsets, out = dk.route(None, None, [5, 3], keep_small=[3, 1], **option)
    assert index.tolist() == [1, 3, 4, 0, 5, 6, 7, 8] and offsets.tolist() == [0, 5, 8]
    assert dk.route(None, None, [2, 1], **option)[0].tolist() == [1, 4, 6]  # no room for others
    assert (score_scale * out[pinned].sigmoid() - 1).abs().max() < 1e-6
    assert torch.equal(out[~pinned], logits[~pinned].to(out.dtype))
    out.backward(torch.ones_like(out))
    assert torch.equal(logits.grad, (~pinned).to(dtype))


@pytest.mark.parametrize(("backend", "dtype"), ROUTES[1:])
def test_pinned_tokens_of_a_router_have_no_gradient(backend, dtype):
    x = torch.randn(2, 6, 8, dtype=dtype).requires_grad_()
    weight = torch.randn(8, requires_grad=True)
    pinned = torch.arange(6).expand(2, 6) < 2
    index, _, logits = dk.route(x, weight, 4, pinned=pinned, score_scale=2.0, backend=backend)
    assert index.view(2, 4)[:, :2].tolist() == [[0, 1], [6, 7]]
    logits.sum().backward()
    assert not x.grad[:, :2].any() and x.grad[:, 2:].all()
    torch.testing.assert_close(weight.grad, x[:, 2:].sum((0, 1)).float().detach(), rtol=2e-2, atol=2e-2)


PINNED = torch.tensor([[True, True, False], [True, False, False]])
FAULTS = {
    "x": {"x": torch.ones(2, 3, 8)},
    "router_weight": {"router_weight": torch.ones(8)},
    "router_bias": {"router_bias": torch.ones(1)},
    "logits": {"logits": torch.ones(2, 3).int()},
    "logits of one sample": {"logits": torch.ones(3)},
    "pinned": {"pinned": PINNED.int()},
    "pinned of other tokens": {"pinned": PINNED[:, :2]},
    "pinned without room": {"keep": [1, 2]},
    "pinned without room in the small bin": {"keep_small": [2, 0]},
    "score_scale": {"score_scale": 0.5},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_go_with_logits_and_pinned_tokens_is_named(fault):
    arguments = {"x": None, "router_weight": None, "keep": [2, 2], "logits": torch.randn(2, 3)}
    arguments |= {"pinned": PINNED}
    dk.route(**arguments)
    with pytest.raises((ValueError, TypeError), match=rf"route: .*\b{fault.split()[0]}\b"):
        dk.route(**arguments | FAULTS[fault])
    with pytest.raises(TypeError, match="route: x must be a tensor, or logits"):
        dk.route(None, None, 2)


def test_rows_that_int32_cannot_count_are_refused():
    x = torch.zeros(1, 1, 8).expand(2**15, 2**16, 8)
    with pytest.raises(ValueError, match=r"route: x must have fewer than 2\^31 rows .* 32768 times 65536"):
        dk.route(x, torch.zeros(8), 1)


@pytest.mark.parametrize("capturing", [True, False])
def test_offsets_that_a_graph_reads_outlive_the_cache(capturing, monkeypatch):
    made = []

    def on_the_cpu(counts, device):
        offsets = reference.cu_seqlens_of(counts, torch.device("cpu"))
        made.append(weakref.ref(offsets))
        return offsets

    monkeypatch.setattr(cu_seqlens, "_read_by_graphs", set())
    monkeypatch.setattr(cu_seqlens, "cu_seqlens_of", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    cu_seqlens._copied.cache_clear()
    cu_seqlens.copied_cu_seqlens([3, 5], torch.device("cuda"))
    cu_seqlens._copied.cache_clear()
    assert (made[0]() is not None) == capturing


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_leaves_the_router_alone(backend):
    """Logits stay fp32, and a call without gradients does not take the gradient from the next one."""
    x, weight = torch.randn(2, 9, 16), torch.randn(16, requires_grad=True)
    expected = dk.route(x, weight, 4, backend=backend)[2]
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            dk.route(x, weight, 4, backend=backend)
        logits = dk.route(x, weight, 4, backend=backend)[2]
    assert torch.equal(logits, expected) and logits.requires_grad
