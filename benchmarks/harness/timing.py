"""What the latency loop is given: calls on buffers that outgrow the cache, as one pass or one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def rotations(set_bytes: int, device: str, most: int = 16) -> int:
    """Sets of buffers to rotate among, 3 times the last cache: a call finds nothing of its own there."""
    return max(2, min(most, -(-3 * cache_bytes(device) // set_bytes)))


def cache_bytes(device: str) -> int:
    """The GPU's L2 cache, or the processor's L3 as the system describes it (32 MiB where it does not)."""
    if device != "cpu":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        return 1024 * int(Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip(" K\n"))
    except (OSError, ValueError):
        return 2**25


def passes_of(
    lists: dict[Hashable, list[Callable[[], object]]], graphs: bool, refusals: tuple[type[Exception], ...]
) -> tuple[dict[Hashable, Callable[[], None]], dict[Hashable, Exception]]:
    """Name -> all calls of its list in order, each result dropped, run once and with `graphs` captured as one
    CUDA graph; and name -> why that failed."""
    shared = (torch.cuda.graph_pool_handle(), torch.cuda.Stream()) if graphs else None
    passes, refused = {}, {}
    for name, calls in lists.items():
        try:
            passes[name] = _pass(calls, shared)
        except refusals as error:
            refused[name] = error
    return passes, refused


def _pass(calls: list[Callable[[], object]], shared: tuple | None) -> Callable[[], None]:
    def one_pass() -> None:
        for call in calls:
            call()

    if shared is None:
        one_pass()
        return one_pass
    pool, stream = shared
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        one_pass()
        with _without_waits():
            one_pass()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # The graphs run one after the other and their results are not read: they may share their memory. The
    # outer context is left also where the end of a failed capture raises.
    with torch.cuda.stream(stream), torch.cuda.graph(graph, pool=pool, stream=stream):
        one_pass()
    return graph.replay


@contextmanager
def _without_waits() -> Iterator[None]:
    """RuntimeError for what waits for the device: in a capture it would leave torch's generator unusable."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
