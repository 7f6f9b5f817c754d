"""The guards around interpreted kernels under test: each fires on a planted bug and is silent on its twin."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from tools.guards.fence import fatal_signal, fenced, survives
from tools.guards.interpreter import (
    guarded,
    interpreted,
    masked_lanes_poisoned,
    overflow_trap,
    program_order,
)

pytestmark = pytest.mark.skipif(not interpreted(), reason="kernels are compiled on this machine")

LARGEST = 2**31 - 1


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Whatever a test did, with or without an exception, the interpreter is as it was."""

    def state():
        builder = interpreter.interpreter_builder
        return (
            builder.options,
            builder.__dict__.keys() & {"set_grid_dim", "set_grid_idx"},
            interpreter.ReduceScanOpInterface.to_tensor,
            interpreter.FunctionRewriter.ast_transformer,
            interpreter.InterpretedFunction.rewritten_fn,
            "typed_range" in vars(interpreter.interpreter_semantic),
            torch.are_deterministic_algorithms_enabled(),
        )

    before = state()
    yield
    assert state() == before


@triton.jit
def arithmetic(out_ptr, a, b, OP: tl.constexpr, WIDE: tl.constexpr):
    if WIDE:
        a = a.to(tl.int64)
    if OP == "multiply":
        result = a * b
    elif OP == "add":
        result = a + b
    else:
        result = a - b
    tl.store(out_ptr, result)


@pytest.mark.parametrize(
    ("op", "a", "b", "result"),
    [
        ("multiply", 65536, 65536, 2**32),
        ("multiply", -65536, 32769, -65536 * 32769),
        ("add", LARGEST, 1, 2**31),
        ("subtract", -LARGEST, 2, -LARGEST - 2),
    ],
)
def test_an_offset_that_leaves_int32_is_trapped(op, a, b, result):
    out = torch.zeros(1, dtype=torch.int64)
    with overflow_trap(), pytest.raises(InterpreterError, match="int32 overflow detected"):
        arithmetic[(1,)](out, a, b, OP=op, WIDE=False)
    with overflow_trap():
        arithmetic[(1,)](out, a, b, OP=op, WIDE=True)
    assert out.item() == result
    arithmetic[(1,)](out, a, b, OP=op, WIDE=False)
    assert out.item() == (result + 2**31) % 2**32 - 2**31, "without the trap it wraps and nobody is told"


@pytest.mark.parametrize(("a", "b"), [(LARGEST, 1), (-(2**15), 2**16), (46340, 46340), (0, -5)])
def test_the_largest_offsets_of_int32_are_not_trapped(a, b):
    out = torch.zeros(1, dtype=torch.int64)
    with overflow_trap():
        arithmetic[(1,)](out, a, b, OP="multiply", WIDE=False)
    assert out.item() == a * b


@triton.jit
def totals(x_ptr, out_ptr, SCAN: tl.constexpr, WIDE: tl.constexpr):
    i = tl.arange(0, 4)
    x = tl.load(x_ptr + i)
    if WIDE:
        x = x.to(tl.int64)
    if SCAN:
        tl.store(out_ptr + i, tl.cumsum(x, axis=0))
    else:
        tl.store(out_ptr + i, tl.sum(x, axis=0) + 0 * i)


@pytest.mark.parametrize(("sign", "limit"), [(1, LARGEST), (-1, -LARGEST - 1)])
@pytest.mark.parametrize("scan", [False, True], ids=["sum", "cumsum"])
def test_a_total_that_leaves_int32_is_trapped(scan, sign, limit):
    def total(goal: int, wide: bool) -> int:
        out, x = torch.zeros(4, dtype=torch.int64), torch.tensor([sign * 2**30, 5, 0, 0])
        x[-1] = goal - x.sum()
        with overflow_trap():
            totals[(1,)](x.to(torch.int32), out, SCAN=scan, WIDE=wide)
        return out[-1].item()

    assert total(limit, False) == limit and total(limit + sign, True) == limit + sign
    with pytest.raises(InterpreterError, match="int32 overflow detected in a reduction"):
        total(limit + sign, False)


@triton.jit
def last_row(out_ptr, first, rows, D: tl.constexpr, TL_RANGE: tl.constexpr):
    offset = tl.zeros((), tl.int64)
    if TL_RANGE:
        for row in tl.range(first, rows, num_stages=2):
            offset = row * D
    else:
        for row in range(first, rows):
            offset = row * D
    tl.store(out_ptr, offset)


@pytest.mark.parametrize("tl_range", [False, True], ids=["range", "tl.range"])
def test_the_index_of_a_loop_overflows_as_it_does_in_a_compiled_kernel(tl_range):
    """The interpreter alone counts in Python ints, whose product with a constexpr has no end."""
    out, rows = torch.zeros(1, dtype=torch.int64), 2**20
    arguments = {"D": 2**12, "TL_RANGE": tl_range}
    with overflow_trap(), pytest.raises(InterpreterError, match="int32 overflow detected for operation mul"):
        last_row[(1,)](out, rows - 3, rows, **arguments)
    with overflow_trap():
        last_row[(1,)](out, 2**19 - 3, 2**19 - 1, **arguments)
        assert out.item() == (2**19 - 2) * 2**12
        last_row[(1,)](out, 0, 0, **arguments)
        assert out.item() == 0
    last_row[(1,)](out, rows - 3, rows, **arguments)
    assert out.item() == (rows - 1) * 2**12


@triton.jit
def last_row_wide(out_ptr, first, rows, D: tl.constexpr):
    offset = tl.zeros((), tl.int64)
    for row in range(first.to(tl.int64), rows):
        offset = row * D
    tl.store(out_ptr, offset)


def test_the_index_of_a_loop_with_int64_bounds_is_int64():
    out = torch.zeros(1, dtype=torch.int64)
    with overflow_trap():
        last_row_wide[(1,)](out, 2**20 - 3, 2**20, D=2**12)
    assert out.item() == (2**20 - 1) * 2**12


@triton.jit
def copy(x_ptr, y_ptr, n, FIRST: tl.constexpr, MASKED: tl.constexpr):
    i = FIRST + tl.arange(0, 16)
    inside = (i >= 0) & (i < n)
    if MASKED:
        tl.store(y_ptr + i, tl.load(x_ptr + i, mask=inside), mask=inside)
    else:
        tl.store(y_ptr + i, tl.load(x_ptr + i))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize(("side", "first"), [("end", 0), ("start", -3)])
def test_an_access_outside_dies_at_the_fence(side, first, access, dtype):
    x, y = torch.ones(64, dtype=dtype)[16:29], torch.zeros(64, dtype=dtype)[16:29]
    x, y = (fenced(x, side), y) if access == "read" else (x, fenced(y, side))

    def run(masked: bool) -> None:
        copy[(1,)](x, y, 13, FIRST=first, MASKED=masked)
        assert torch.equal(x, y)

    assert survives(run, True)
    assert fatal_signal(run, False) == signal.SIGSEGV


@triton.jit
def twice(x_ptr, out_ptr, D: tl.constexpr):
    offset = tl.program_id(0) * D + tl.arange(0, D)
    tl.store(out_ptr + offset, 2 * tl.load(x_ptr + offset))


def test_a_row_that_nobody_wrote_is_poison():
    x = torch.randn(5, 8)
    for programs in (4, 5):
        with guarded(seed=0):
            out = torch.empty_like(x)
            twice[(programs,)](x, out, D=8)
        assert torch.equal(out[:programs], 2 * x[:programs]) and out[programs:].isnan().all()


@triton.jit
def masked_total(x_ptr, out_ptr, D: tl.constexpr, OTHER: tl.constexpr):
    d = tl.arange(0, 16)
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + d, mask=d < D, other=OTHER), axis=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_a_masked_lane_without_other_is_poison(dtype):
    x, out = torch.ones(16, dtype=dtype), torch.zeros(1, dtype=dtype)
    masked_total[(1,)](x, out, D=5, OTHER=None)
    assert out.item() == 5, "the interpreter itself gives zeros"
    with masked_lanes_poisoned():
        masked_total[(1,)](x, out, D=5, OTHER=0)
        assert out.item() == 5
        masked_total[(1,)](x, out, D=5, OTHER=None)
        assert out.item() != 5


@triton.jit
def total_by_atomics(x_ptr, out_ptr):
    tl.atomic_add(out_ptr, tl.load(x_ptr + tl.program_id(0)))


@triton.jit
def total_by_read_and_write(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load(out_ptr) + tl.load(x_ptr + tl.program_id(0)))


@triton.jit
def last_writer_wins(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load(x_ptr + tl.program_id(0)))


@triton.jit
def one_slot_each(x_ptr, slots_ptr):
    program = tl.program_id(0)
    tl.store(slots_ptr + program, tl.load(x_ptr + program))


@pytest.mark.parametrize(
    "kernel", [total_by_atomics, total_by_read_and_write, last_writer_wins, one_slot_each]
)
def test_a_result_that_depends_on_the_order_of_programs_shows(kernel):
    x = torch.tensor([1e8, 3.0, -1e8, 5e-3, 7.0, 1e7, -1e7, 11.0])

    def total(seed: int) -> float:
        out = torch.zeros(8)
        with program_order(seed):
            kernel[(8,)](x, out)
        return out.sum().item()

    totals = [total(seed) for seed in range(6)]
    assert totals == [total(seed) for seed in range(6)], "a seed is an order"
    assert (len(set(totals)) == 1) == (kernel is one_slot_each)


@triton.jit
def when(order_ptr, count_ptr, COLUMNS: tl.constexpr, LAYERS: tl.constexpr):
    now = tl.load(count_ptr)
    program = (tl.program_id(0) * COLUMNS + tl.program_id(1)) * LAYERS + tl.program_id(2)
    tl.store(order_ptr + now, program)
    tl.store(count_ptr, now + 1)


def ran(grid: tuple[int, ...], launches: int = 1) -> list[list[int]]:
    """The programs of each launch in the order in which they ran."""
    columns, layers = (*grid, 1, 1)[1:3]
    orders = []
    for _ in range(launches):
        order, count = torch.full((64,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        when[grid](order, count, COLUMNS=columns, LAYERS=layers)
        orders.append(order[: count.item()].tolist())
    return orders


@pytest.mark.parametrize("grid", [(1,), (2,), (3, 2), (2, 3, 4)], ids=str)
def test_every_program_runs_once_and_never_in_the_usual_order(grid):
    [usual] = ran(grid)
    assert usual == list(range(len(usual)))
    for seed in range(8):
        with program_order(seed):
            orders = ran(grid, launches=3)
        for order in orders:
            assert sorted(order) == usual and (order != usual or len(usual) == 1)
    assert len(usual) < 24 or len({tuple(order) for order in orders}) == 3, "each launch has its own order"
    assert ran(grid) == [usual]


def test_guards_nest_and_an_exception_takes_off_one_layer_only():
    out = torch.zeros(1, dtype=torch.int64)
    with guarded(seed=0):
        with pytest.raises(ZeroDivisionError), guarded(seed=1):
            assert sorted(ran((4,))[0]) == [0, 1, 2, 3]
            raise ZeroDivisionError
        with pytest.raises(InterpreterError, match="int32 overflow"):
            arithmetic[(1,)](out, 65536, 65536, OP="multiply", WIDE=False)
        assert ran((4,)) != [[0, 1, 2, 3]] and torch.empty(3).isnan().all()
    arithmetic[(1,)](out, 65536, 65536, OP="multiply", WIDE=False)
    assert ran((4,)) == [[0, 1, 2, 3]]


@triton.jit
def add(x_ptr, y_ptr, out_ptr, UPCAST: tl.constexpr):
    i = tl.arange(0, 1024)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if UPCAST:
        x, y = x.to(tl.float32), y.to(tl.float32)
    tl.store(out_ptr + i, (x + y).to(out_ptr.dtype.element_ty))


def added(dtype: torch.dtype, out_dtype: torch.dtype, upcast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y by the interpreter and by torch."""
    x, y = torch.randn(2, 1024).to(dtype)
    out = torch.empty(1024, dtype=out_dtype)
    add[(1,)](x, y, out, UPCAST=upcast)
    return out, (x.float() + y.float()).to(out_dtype)


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_interpreter_is_exact_in_fp32_and_fp16(dtype, upcast):
    actual, right = added(dtype, dtype, upcast)
    assert torch.equal(actual, right)


def test_the_interpreter_is_wrong_in_bf16():
    """Why interpreted kernels are tested in fp32 and fp16. Should this fail one day, add bf16 there."""
    sums, right = added(torch.bfloat16, torch.bfloat16, upcast=False)
    assert not (sums - right).abs().max() < 1, "bf16 is added as if its bits were integers"
    stored, right = added(torch.bfloat16, torch.bfloat16, upcast=True)
    assert not torch.equal(stored, right) and (stored.abs() <= right.abs()).all(), "fp32 is cut, not rounded"
    loaded, right = added(torch.bfloat16, torch.float32, upcast=True)
    assert torch.equal(loaded, right), "a bf16 load that is upcast at once is right"


def test_guards_of_interpreted_kernels_refuse_compiled_ones():
    code = (
        "import torch\n"
        "from tools.guards import interpreter\n"
        "assert not interpreter.interpreted()\n"
        "guards = interpreter.overflow_trap, interpreter.masked_lanes_poisoned\n"
        "guards += (lambda: interpreter.program_order(0),)\n"
        "for guard in (guard() for guard in guards):\n"
        "    try:\n"
        "        guard.__enter__()\n"
        "    except RuntimeError as error:\n"
        "        assert 'TRITON_INTERPRET=1' in str(error)\n"
        "    else:\n"
        "        raise SystemExit('no error')\n"
        "with interpreter.guarded(0):\n"
        "    assert torch.empty(3).isnan().all()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
