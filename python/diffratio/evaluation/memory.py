"""Peak memory of a call: what was allocated at once, beyond what was there before."""

import os
from collections.abc import Callable

import torch


def peak_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that `call()` had allocated at its peak, outputs included, inputs and weights not.

    device "cpu": every allocation counts, also those inside operators; "cuda": the caching allocator's own
    peak. Run the call once before, so that what it caches is not counted.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        resident = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - resident
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr otherwise
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        kept = call()
    del kept
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
