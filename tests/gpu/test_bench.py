"""What cannot be captured spoils nothing that comes after it."""

import pytest
import torch

from benchmarks.harness.timing import passes_of
from diffratio.evaluation.latency import rotating_times

pytestmark = pytest.mark.gpu


def fail():
    raise ValueError("no kernel")


def test_what_waits_for_the_device_is_refused_before_its_capture():
    x, outside = torch.ones(4, device="cuda"), torch.cuda.current_stream()
    lists = {"waits": [lambda: x.sum().item()], "fails": [fail], "runs": [lambda: x * 2]}
    passes, refused = passes_of(lists, True, (RuntimeError, ValueError))
    assert list(passes) == ["runs"] and set(refused) == {"waits", "fails"}
    assert "synchronizing" in str(refused["waits"])
    assert torch.cuda.current_stream() == outside and torch.cuda.get_sync_debug_mode() == 0
    torch.randn(4, device="cuda")  # a failed capture leaves the generator where this is an error
    assert rotating_times(passes, 1, 3, "cuda", progress=False)["runs"].median > 0
