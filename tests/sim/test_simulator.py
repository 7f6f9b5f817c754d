"""The simulator notices what a GPU leaves undefined, and only that."""

import pytest
import torch

from tools.sim import build

SEEDS = range(12)


def outcomes(module, control: str, broken: bool) -> set[str]:
    """What the control returns, over schedules."""
    results = set()
    for seed in SEEDS:
        module.seed(seed)
        results.add(repr(getattr(module, control)(broken)))
    module.seed(0)
    return results


@pytest.mark.parametrize("control", ["block_sum", "rotate", "uneven_warps", "last_block"])
def test_results_that_depend_on_the_schedule(controls, control):
    assert len(outcomes(controls, control, broken=True)) > 1
    assert len(outcomes(controls, control, broken=False)) == 1


def test_the_same_seed_is_the_same_schedule(controls):
    controls.seed(3)
    first = controls.rotate(True)
    controls.block_sum(False)
    assert controls.rotate(True) == first


@pytest.mark.parametrize(
    "control, says",
    [
        ("part_of_a_block", r"barrier not reached by every thread of block \(\d, 0, 0\): .* has ended"),
        ("two_barriers", r"barrier not reached .*__syncthreads at .*:\d+, .*__syncthreads at .*:\d+"),
        ("part_of_a_warp", r"warp call not reached by every lane .*0xffffffff, lane 16: .*__syncthreads"),
        ("ended_lane", r"warp call not reached by every lane .*lane 7: thread \(7, 0, 0\) has ended"),
        ("foreign_lane", r"lane \d+ reads lane 20, but the mask must name both.*0x0000ffff"),
        ("short_warp", r"warp call not reached by every lane .*lane 16 does not exist"),
    ],
)
def test_threads_that_never_meet(controls, control, says):
    for seed in SEEDS:
        controls.seed(seed)
        with pytest.raises(controls.Error, match=says):
            getattr(controls, control)(True)
        controls.seed(0)
        assert -1 not in getattr(controls, control)(False)[:16], "a launch after an error"


def test_unwritten_shared_memory_is_nan(controls):
    first, second = torch.tensor(controls.unwritten_shared(True)).view(2, -1)
    assert first.eq(1).all()
    assert second.isnan().sum() == 1, "the block before had written it"
    assert torch.tensor(controls.unwritten_shared(False)).eq(1).all()


@pytest.mark.parametrize(
    "grid, block", [((5, 1, 1), (96, 1, 1)), ((3, 2, 1), (8, 4, 1)), ((2, 3, 2), (4, 3, 5))]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_positions(controls, grid, block, seed):
    """Every thread of every block runs once, with CUDA's numbers: x fastest."""
    controls.seed(seed)
    got = torch.tensor(controls.launch(grid, block)).view(-1, 6)
    axes = [torch.arange(n) for n in (*grid[::-1], *block[::-1])]
    expected = torch.cartesian_prod(*axes)[:, [2, 1, 0, 5, 4, 3]]
    assert torch.equal(got.long(), expected)


@pytest.mark.parametrize(
    "grid, block",
    [
        ((0, 1, 1), (32, 1, 1)),
        ((1, 65536, 1), (1, 1, 1)),
        ((1, 1, 1), (1025, 1, 1)),
        ((1, 1, 1), (1, 1, 65)),
    ],
)
def test_launches_that_a_gpu_refuses(controls, grid, block):
    with pytest.raises(controls.Error, match="a GPU refuses this launch"):
        controls.launch(grid, block)


@pytest.mark.parametrize("seed", range(4))
def test_warp_calls(controls, seed):
    controls.seed(seed)
    values = torch.randint(-1000, 1000, (32,)).tolist()
    positive = [v > 0 for v in values]

    def bits(lanes: range) -> int:
        mask = sum(positive[i] << i for i in lanes)
        return mask - 2**32 if mask >= 2**31 else mask

    expected = [
        [values[5] for _ in range(32)],
        [values[i // 8 * 8 + (i + 3) % 8] for i in range(32)],
        [values[i ^ 9] for i in range(32)],
        [values[i ^ 9] if (i ^ 9) < i // 8 * 8 + 8 else values[i] for i in range(32)],
        [values[i - 3 if i >= 3 else i] for i in range(32)],
        [values[i - 3 if i % 16 >= 3 else i] for i in range(32)],
        [values[i + 3 if i + 3 < 32 else i] for i in range(32)],
        [values[i + 3 if i % 16 + 3 < 16 else i] for i in range(32)],
        [bits(range(32))] * 32,
        [0] * 32,
        [1] * 32,
        [bits(range(16))] * 16 + [bits(range(16, 32))] * 16,
    ]
    assert torch.tensor(controls.warp_calls(values)).view(-1, 32).tolist() == expected


def test_barrier_votes(controls):
    for predicates in ([0] * 96, [0] * 95 + [7], [1] * 96):
        count = sum(map(bool, predicates))
        assert controls.barrier_votes(predicates) == [int(count > 0)] * 96 + [count] * 96


def test_atomics(controls):
    assert controls.atomics() == [sum(range(64)), 63, 0, 127]


def test_slow_switch():
    """The context switch of processors other than x86-64."""
    module = build.load("controls", runtime_defines=("-DDIFFRATIO_UCONTEXT",))
    assert len(outcomes(module, "rotate", broken=True)) > 1
    assert len(outcomes(module, "rotate", broken=False)) == 1
    with pytest.raises(module.Error, match="barrier not reached"):
        module.part_of_a_block(True)


def test_switches_are_counted(controls):
    before = controls.switches()
    controls.atomics()
    assert controls.switches() == before + 64 + 1


def test_tensors(controls):
    t = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert controls.describe(t, None)[:4] == (t.data_ptr(), 2, 3, 6)
    assert controls.describe(t, t)[5]
    types = [torch.bool, torch.uint8, torch.int32, torch.int64]
    types += [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    assert [controls.describe(torch.zeros(1, dtype=d), None)[4] for d in types] == list(range(8))
    with pytest.raises(ValueError, match="contiguous"):
        controls.describe(t.t(), None)
    with pytest.raises(ValueError, match="torch.complex64"):
        controls.describe(t.to(torch.complex64), None)
    with pytest.raises(ValueError, match="CPU"):
        controls.describe(t.to("meta"), None)
    with pytest.raises(TypeError):
        controls.describe([1.0], None)
