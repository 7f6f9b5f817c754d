"""Memory, atomics, branches and exchanges within a warp, by definition."""

import random

import pytest
import torch

TO = "mul.wide.u32 %d2, %r2, 4; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2; ld.global.b32 %r10, [%d3];"
BACK = "st.global.b32 [%d4], %r11;"


def of_a_warp(run, body, given=None):
    given = torch.arange(100, 132, dtype=torch.int32) if given is None else given
    return run(TO + body + BACK, given, torch.zeros(32, dtype=torch.int32), threads=32).tolist()


@pytest.mark.parametrize("kind", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 8, 4])
@pytest.mark.parametrize("by", [0, 1, 3, 5, 16])
def test_shuffles(kind, width, by, run):
    segments = (32 - width) << 8
    clamp = segments | (0 if kind == "up" else width - 1 if width == 32 else 31)
    body = f"shfl.sync.{kind}.b32 %r12|%p1, %r10, {by}, {clamp}, -1; selp.b32 %r13, 1000, 0, %p1;"
    body += "add.s32 %r11, %r12, %r13;"
    found = of_a_warp(run, body)
    for lane, got in enumerate(found):
        first = lane // width * width
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first + by % width}[kind]
        inside = source >= first if kind == "up" else source < first + width
        assert got == 100 + (source if inside else lane) + (1000 if inside else 0)


def test_votes_and_reductions(run):
    draw = random.Random(3)
    given = torch.tensor([draw.randrange(-50, 50) for _ in range(32)], dtype=torch.int32)
    values = given.tolist()
    odd = sum((v & 1) << lane for lane, v in enumerate(values))
    is_odd = "and.b32 %r12, %r10, 1; setp.ne.b32 %p1, %r12, 0;"
    assert (
        of_a_warp(run, is_odd + "vote.sync.ballot.b32 %r11, %p1, -1;", given)
        == [odd - 2**32 * (odd >> 31)] * 32
    )
    for kind, right in (("any", True), ("all", False), ("uni", False)):
        body = is_odd + f"vote.sync.{kind}.pred %p2, %p1, -1; selp.b32 %r11, 1, 0, %p2;"
        assert of_a_warp(run, body, given) == [int(right)] * 32
    for name, right in (("add", sum), ("min", min), ("max", max)):
        assert of_a_warp(run, f"redux.sync.{name}.s32 %r11, %r10, -1;", given) == [right(values)] * 32


def test_an_exchange_of_a_part_of_a_warp(run):
    """The other lanes are in the other branch."""
    body = """
    mov.u32 %r11, 7; setp.lt.u32 %p1, %r0, 8; @!%p1 bra $other;
    redux.sync.add.s32 %r11, %r10, 255; bra $end;
    $other: redux.sync.max.s32 %r11, %r10, 0xFFFFFF00;
    $end: bar.warp.sync -1;
    """
    assert of_a_warp(run, body) == [sum(range(100, 108))] * 8 + [131] * 24


def test_lanes_that_part_meet_again(run):
    """Collatz steps of every lane's number: each lane leaves the loop at its own time."""
    body = """
    mov.u32 %r11, 0;
    $loop: setp.le.s32 %p1, %r10, 1; @%p1 bra $end;
    and.b32 %r12, %r10, 1; setp.eq.b32 %p2, %r12, 0; @%p2 bra $even;
    mad.lo.s32 %r10, %r10, 3, 1; bra $next;
    $even: shr.s32 %r10, %r10, 1;
    $next: add.s32 %r11, %r11, 1; bra $loop;
    $end: redux.sync.add.s32 %r13, %r11, -1; add.s32 %r11, %r11, %r13;
    """

    def steps(v):
        count = 0
        while v > 1:
            v, count = (v // 2 if v % 2 == 0 else 3 * v + 1), count + 1
        return count

    right = [steps(v) for v in range(1, 33)]
    assert of_a_warp(run, body, torch.arange(1, 33, dtype=torch.int32)) == [
        count + sum(right) for count in right
    ]


def test_vectors_and_narrow_numbers_in_memory(run):
    body = """
    mul.wide.u32 %d2, %r2, 16; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2; mov.u32 %r20, dynamic;
    shl.b32 %r21, %r0, 4; add.u32 %r20, %r20, %r21;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%d3]; st.shared.v2.b32 [%r20], {%r10, %r11};
    st.shared.v4.b16 [%r20+8], {%h1, %h2, %h1, %h2}; cvt.u16.u32 %h1, %r12; cvt.u16.u32 %h2, %r13;
    st.shared.v4.b16 [%r20+8], {%h1, %h2, %h1, %h2}; ld.shared.v2.b64 {%d5, %d6}, [%r20];
    ld.shared.s8 %r14, [%r20]; ld.shared.u8 %r15, [%r20]; ld.shared.b16 %h3, [%r20+8]; cvt.u32.u16 %r16, %h3;
    mov.b64 {%r17, %r18}, %d6; st.global.v4.b32 [%d4], {%r14, %r15, %r16, %r17};
    """
    given = torch.randint(-(2**31), 2**31, (64, 4)).int()
    out = run(body, given, torch.zeros(64, 4, dtype=torch.int32))
    bytes_, halves = given.view(torch.int8).view(64, 16), given.view(torch.int16).view(64, 8)
    wanted = [bytes_[:, 0].int(), bytes_.view(torch.uint8)[:, 0].int(), halves[:, 4].int() & 0xFFFF]
    wanted.append(halves[:, [4, 6]].contiguous().view(torch.int32)[:, 0])
    assert torch.equal(out, torch.stack(wanted, 1))


ATOMICS = {
    "add.u32": lambda a, b: a + b,
    "min.s32": min,
    "max.s32": max,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name, space, run):
    """Of 4 blocks in global memory, of one in shared memory: no lane loses what another has done."""
    value, blocks = torch.arange(1, 257, dtype=torch.int32) * 37 % 101, 4 if space == "global" else 1
    start = "mov.u32 %r20, dynamic; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.b32 [%r20], %r21; bar.sync 0;"
    at, end = (
        ("%d1", "")
        if space == "global"
        else ("%r20", "bar.sync 0; ld.shared.b32 %r22, [%r20]; st.global.b32 [%d1], %r22;")
    )
    body = "mov.u32 %r21, 64; mul.wide.u32 %d2, %r2, 4; add.s64 %d3, %d0, %d2; ld.global.b32 %r10, [%d3];"
    body += (start if space == "shared" else "") + f"atom.{space}.{name} %r11, [{at}], %r10;" + end
    out = run(body, value, torch.full((1,), 64, dtype=torch.int32), blocks=blocks)
    right = 64
    for v in value[: 64 * blocks].tolist():
        right = ATOMICS[name](right, v)
    assert out.item() == right


def test_compare_and_exchange(run):
    body = "atom.global.cas.b32 %r11, [%d1], 5, 9; atom.global.exch.b32 %r12, [%d1+4], %r11;"
    out = run(body, torch.zeros(1), torch.tensor([5, 0], dtype=torch.int32), threads=32)
    assert out.tolist() == [9, 9]  # the first thread found 5, the last one 9


def test_barriers_order_warps(run):
    """Each warp reads what the next one has written, 4 times."""
    body = "mul.wide.u32 %d2, %r0, 4; add.s64 %d4, %d1, %d2; mov.u32 %r20, dynamic; shl.b32 %r21, %r0, 2;"
    body += "add.u32 %r22, %r20, %r21; add.u32 %r23, %r0, 32; rem.u32 %r23, %r23, 128; shl.b32 %r23, %r23, 2;"
    body += "add.u32 %r23, %r20, %r23; mov.u32 %r11, %r0;"
    body += "st.shared.b32 [%r22], %r11; bar.sync 0; ld.shared.b32 %r11, [%r23]; bar.sync 0;" * 4
    out = run(body + BACK, torch.zeros(1), torch.zeros(128, dtype=torch.int32), threads=128)
    assert out.tolist() == list(range(128))
