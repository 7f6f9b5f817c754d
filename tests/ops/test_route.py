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
