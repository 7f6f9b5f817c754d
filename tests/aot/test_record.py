"""What is compiled ahead of time is what Triton would compile at the launch."""

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction, create_function_from_signature

from diffratio_kernels._triton import stand_ins, tiles
from diffratio_kernels.ops.attention import triton as attention
from diffratio_kernels.types import Seqlens
from tools.aot.record import record
from tools.aot.shipped import configurations


def launches(function, *arguments) -> list[tuple]:
    """Kernel, arguments and options of every launch of a call on meta tensors."""
    found = []
    stand_ins["meta"] = lambda kernel, _, *rest: found.append((kernel, *rest))
    try:
        function(*arguments)
    finally:
        del stand_ins["meta"]
    return found


def what_triton_sees(kernel, args, options) -> tuple[dict, dict, tuple[int, ...]]:
    """Signature, constants and aligned places from Triton's own launch code, with real tensors."""
    function = JITFunction(kernel.fn)
    backend = CUDABackend(GPUTarget("cuda", 80, 32))
    bind = create_function_from_signature(function.signature, function.params, backend)
    real = [as_far_from_alignment(value) if isinstance(value, torch.Tensor) else value for value in args]
    values, seen, _ = bind(*real, **options)
    names = list(values)
    signature = {name: kind for name, (kind, _) in zip(names, seen, strict=True)}
    constants = {name: values[name] for name in names if signature[name] == "constexpr"}
    aligned = tuple(place for place, (kind, key) in enumerate(seen) if kind != "constexpr" and key == "D")
    return signature, constants, aligned


def as_far_from_alignment(t: torch.Tensor) -> torch.Tensor:
    """A small tensor whose memory begins as many bytes after a multiple of 64 as that of `t` would."""
    offset = t.storage_offset() % 64
    return torch.empty(offset + 1, dtype=t.dtype)[offset:]


def assert_the_same(function, *arguments):
    seen = [what_triton_sees(*launched) for launched in launches(function, *arguments)]
    specs = record(80, function, *arguments)
    recorded = [(spec.signature, spec.constants, spec.aligned) for spec in specs]
    assert recorded == seen
    return recorded


def test_every_shipped_configuration_is_recorded_as_triton_launches_it():
    shipped = list(configurations())
    assert len(shipped) > 60
    for each in shipped:
        assert assert_the_same(each.function, *each.arguments)


def test_floating_point_fusion_is_asked_for_and_not_left_to_triton():
    """Its default changes in Triton 3.10."""
    for shipped in configurations():
        call = shipped.function, *shipped.arguments
        assert all(options["enable_fp_fusion"] is True for _, _, options in launches(*call))
        assert all(spec.options["enable_fp_fusion"] is True for spec in record(80, *call))


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def self_attention(rows, heads, head_dim, offset):
    """Attention of the training step, and its arguments: the joined q/k/v begin `offset` elements into their
    memory."""
    flat = meta(offset + rows * 3 * heads * head_dim)[offset:]
    query, key, value = flat.view(rows, 3, heads, head_dim).unbind(1)
    cu_seqlens = meta(2, dtype=torch.int32)
    seqlens = Seqlens(cu_seqlens, cu_seqlens, rows, rows)
    return attention.attention, query, key, value, seqlens, None, True


@pytest.mark.parametrize("rows, kind", [(1, "constexpr"), (2, "i32"), (32, "i32"), (2**31, "i64")])
def test_integers_by_value(rows, kind):
    ((signature, constants, aligned),) = assert_the_same(*self_attention(rows, 1, 8, 0))
    place = list(signature).index("rows")
    assert signature["rows"] == kind and (place in aligned) == (rows % 16 == 0)
    assert constants.get("rows") == (1 if rows == 1 else None)


def test_alignment_by_where_the_memory_begins():
    aligned = [assert_the_same(*self_attention(5, 1, 8, offset))[0][2] for offset in (0, 1, 8)]
    assert [{0, 1, 2} <= set(places) for places in aligned] == [True, False, True]
    # One head of 12: k begins 24 bytes after q, v 48.
    places = assert_the_same(*self_attention(5, 1, 12, 0))[0][2]
    assert [place in places for place in (0, 1, 2)] == [True, False, True]


def test_the_architecture_chooses_the_tiles_and_is_put_back():
    before = tiles.assumed_architecture
    by_architecture = [record(architecture, *self_attention(4096, 16, 72, 0))[0] for architecture in (80, 90)]
    assert by_architecture[0].constants["BLOCK_M"] != by_architecture[1].constants["BLOCK_M"]
    assert tiles.assumed_architecture == before and "meta" not in stand_ins
