"""Every detector fires on a kernel with its fault, and is silent on the kernel without it."""

import pytest
import torch

AT = "mov.u32 %r20, dynamic; shl.b32 %r21, %r0, 2; add.u32 %r22, %r20, %r21; cvt.u64.u32 %d2, %r21;"
AT += "add.s64 %d4, %d1, %d2;"
COPY = "mov.u32 %r20, dynamic; shl.b32 %r21, %r0, 4; add.u32 %r22, %r20, %r21; cvt.u64.u32 %d2, %r21;"
COPY += "add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2; cp.async.cg.shared.global [%r22], [%d3], 16;"
COMMIT, WAIT = "cp.async.commit_group;", "cp.async.wait_group 0;"
READ = "ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r22]; st.global.v4.b32 [%d4], {%r10, %r11, %r12, %r13};"
DESCRIBED = "shr.u32 %r24, %r20, 4; cvt.u64.u32 %d10, %r24; or.b64 %d10, %d10, 0x0000000800080000;"
REGISTERS = "{%r60, %r61, %r62, %r63}"
PRODUCT = f"wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {REGISTERS}, %d10, %d10, %p1, 1, 1, 0, 0;"
ZEROS = "mov.u32 %r20, dynamic; shl.b32 %r21, %r0, 4; add.u32 %r22, %r20, %r21; mov.b32 %r10, 0;"
ZEROS += "st.shared.v4.b32 [%r22], {%r10, %r10, %r10, %r10}; mov.pred %p1, 0;" + DESCRIBED
PROXY, BARRIER, FENCE = "fence.proxy.async.shared::cta;", "bar.sync 0;", "wgmma.fence.sync.aligned;"
DONE = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"
STORE = "mul.wide.u32 %d2, %r0, 4; add.s64 %d4, %d1, %d2; st.global.b32 [%d4], %r60;"

FAULTS = {
    "global, after the end": ("ld.global.b32 %r10, [%d0+{}];", 1020, 1024, "4 bytes at .* are in no tensor"),
    "global, before the start": ("ld.global.b32 %r10, [%d0+{}];", 0, -4, "are in no tensor: 4 bytes before"),
    "global, across the end": ("ld.global.v2.b32 {{%r10, %r11}}, [%d0+{}];", 1016, 1024, "are in no tensor"),
    "global, misaligned": ("ld.global.v2.b32 {{%r10, %r11}}, [%d0+{}];", 16, 12, "misaligned: 8 bytes"),
    "shared, after the end": ("ld.shared.b32 %r10, [dynamic+{}];", 4092, 4096, "offset 4096 .* is outside"),
    "shared, misaligned": ("st.shared.b64 [dynamic+{}], %d0;", 8, 4, "8 bytes at shared offset 4"),
    "barrier in one branch": (
        "setp.lt.u32 %p1, %r0, {}; @%p1 bra $a; bar.sync 0; $a: bar.sync 1; setp.lt.u32 %p1, %r0, 32;",
        0, 16, "parts of a warp wait for each other|only 0xffff",
    ),
    "barrier that one warp does not reach": (
        "setp.lt.u32 %p1, %r0, {}; @%p1 bra $end; bar.sync 0; bar.sync 1, 64; $end:",
        0, 32, "deadlock: 32 of 64",
    ),
    "collective under a predicate": (
        "setp.ge.u32 %p1, %r0, {}; @%p1 redux.sync.add.s32 %r10, %r0, -1;",
        0, 1, "whose predicate only 0xfffffffe",
    ),
    "a lane that does not take part": (
        "setp.lt.u32 %p1, %r0, 8; @!%p1 bra $end; shfl.sync.idx.b32 %r10, %r0, {}, 31, 255; $end:",
        3, 9, "takes a value of lane 9, which does not take part",
    ),
    "trap": ("setp.eq.u32 %p1, %r0, {}; @%p1 trap;", 99, 5, "thread 5: trap"),
}  # fmt: skip


@pytest.mark.parametrize("body, right, wrong, words", FAULTS.values(), ids=FAULTS)
def test_accesses_and_collectives(body, right, wrong, words, run, fault):
    given, out = torch.zeros(256), torch.zeros(256)
    run(body.format(right), given, out)
    with pytest.raises(fault, match=words):
        run(body.format(wrong), given, out)


RACES = {
    "read after write": (
        AT
        + "st.shared.b32 [%r22], %r0; {} xor.b32 %r23, %r21, 128; add.u32 %r23, %r20, %r23;"
        + "ld.shared.b32 %r10, [%r23];",
        "race: (reads shared offset .*, which warp . wrote|writes shared offset .*, which warps 0x. read)",
    ),
    "write after read": (
        AT + "ld.shared.b32 %r10, [%r20]; {} setp.eq.u32 %p1, %r0, 40; @%p1 st.shared.b32 [%r20], %r0;",
        "race: (writes shared offset 0, which warps 0x. read|reads)",
    ),
    "write after write": (
        AT + "setp.eq.u32 %p1, %r0, 3; @%p1 st.shared.b32 [%r20], %r0; {} setp.eq.u32 %p1, %r0, 40;"
        "@%p1 st.shared.b32 [%r20], %r0;",
        "race: writes shared offset 0, which warp . wrote",
    ),
}


@pytest.mark.parametrize("body, words", RACES.values(), ids=RACES)
def test_races_between_barriers(body, words, run, fault):
    """Whichever warp is first."""
    given, out = torch.zeros(256), torch.zeros(256)
    for seed in range(4):
        run(body.format("bar.sync 0;"), given, out, seed=seed)
        with pytest.raises(fault, match=words):
            run(body.format(""), given, out, seed=seed, turn=1)


def test_a_copy_is_not_there_before_the_wait(run, fault):
    given = torch.arange(256, dtype=torch.int32)
    for when in ("early", "late", "random"):
        assert torch.equal(
            run(COPY + COMMIT + WAIT + READ, given, torch.zeros_like(given), copies=when), given
        )
        with pytest.raises(fault, match="an asynchronous copy has still to write"):
            run(COPY + COMMIT + READ, given, torch.zeros_like(given), copies=when)
        with pytest.raises(fault, match="an asynchronous copy has still to write"):
            run(COPY + COMMIT + COPY.split(";")[-2].replace("[%r22]", "[%r22+1024]") + ";" + COMMIT
                + WAIT.replace("0", "2") + READ, given, torch.zeros_like(given), copies=when)  # fmt: skip


def test_a_copy_of_another_warp_needs_a_barrier(run, fault):
    given = torch.arange(256, dtype=torch.int32)
    other = "xor.b32 %r23, %r21, 512; add.u32 %r22, %r20, %r23;"
    for seed in range(4):
        run(COPY + COMMIT + WAIT + BARRIER + other + READ, given, torch.zeros_like(given), seed=seed)
        with pytest.raises(fault, match="race|still to write"):
            run(COPY + COMMIT + WAIT + other + READ, given, torch.zeros_like(given), seed=seed, turn=1)


def test_what_a_copy_reads_is_read_when_it_arrives(run):
    """ "late": after the source was overwritten, which "early" does not see."""
    body = COPY + COMMIT + "mov.b32 %r30, 7; st.global.b32 [%d3], %r30;" + WAIT + READ
    found = {}
    for when in ("early", "late"):
        out = run(body, torch.zeros(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32), copies=when)
        found[when] = out[0].item()
    assert found == {"early": 0, "late": 7}


def test_bytes_that_are_not_copied_are_zeros(run, fault):
    body = "mov.u32 %r30, BYTES;" + COPY.replace("], 16;", "], 16, %r30;") + COMMIT + WAIT + READ
    given = torch.arange(1, 257, dtype=torch.int32)
    out = run(body.replace("BYTES", "4"), given, torch.ones_like(given)).view(64, 4)
    assert torch.equal(out[:, 0], given.view(64, 4)[:, 0]) and not out[:, 1:].any()
    assert not run(body.replace("BYTES", "0"), given[:0], torch.ones_like(given)).any(), "no source is read"
    with pytest.raises(fault, match="more bytes of the source"):
        run(body.replace("BYTES", "20"), given, torch.ones_like(given))


WGMMA = ZEROS + PROXY + BARRIER + FENCE + PRODUCT + DONE + STORE


@pytest.mark.parametrize(
    "taken_out, words",
    [(PROXY, "without a proxy fence"), (FENCE, "without a wgmma.fence"), (DONE, "in flight at the end")],
    ids=["proxy fence", "wgmma.fence", "wait"],
)
def test_what_wgmma_needs(taken_out, words, run, fault):
    given, out = torch.zeros(1), torch.ones(128)
    assert not run(WGMMA, given, out, threads=128).any()
    with pytest.raises(fault, match=words):
        run(WGMMA.replace(taken_out, ""), given, torch.ones(128), threads=128, products="late")


def test_a_product_is_not_there_before_the_wait(run):
    before = WGMMA.replace(DONE + STORE, STORE + DONE)
    assert not run(before, torch.zeros(1), torch.ones(128), threads=128, products="early").any()
    assert run(before, torch.zeros(1), torch.ones(128), threads=128, products="late").isnan().all()


def test_wgmma_without_its_whole_warpgroup(run, fault):
    with pytest.raises(fault, match="without a whole warpgroup"):
        run(WGMMA, torch.zeros(1), torch.ones(128), threads=64)
    differs = WGMMA.replace(
        FENCE, FENCE + "and.b32 %r30, %r0, 1; cvt.u64.u32 %d11, %r30; add.s64 %d10, %d10, %d11;"
    )
    with pytest.raises(fault, match="descriptor that differs"):
        run(differs, torch.zeros(1), torch.ones(128), threads=128)


def test_registers_and_shared_memory_begin_as_nan(run):
    body = AT + "st.global.b32 [%d4], %r150; ld.shared.b32 %r10, [%r22]; st.global.b32 [%d4+1024], %r10;"
    assert run(body, torch.zeros(1), torch.zeros(512), threads=256).isnan().all()


@pytest.mark.parametrize(
    "body, words",
    [
        ("add.s32 %r3, %r0;", "2 operands instead of 3"),
        ("add.sat.s32 %r3, %r0, %r1;", "form of the instruction is not known: .sat"),
        ("add.f32 %f1, %f2, %d0;", "%d0 has 8 bytes instead of 4"),
        ("frobnicate.b32 %r3, %r0;", "this instruction is not known"),
        ("mov.b32 %r3, %q9;", "unknown register %q9"),
        ("bra $nowhere;", "no label .nowhere"),
        ("atom.global.add.f32 %f1, [%d0], %f2;", "is not known"),
        ("cp.async.bulk.tensor.2d.shared::cluster.global [%r3], [%d0];", "not known"),
    ],
)
def test_what_is_not_known_is_named_with_its_line(body, words, run, fault):
    with pytest.raises(fault, match=rf"k, PTX line \d+: `.*`: .*{words}"):
        run(body, torch.zeros(1), torch.zeros(1))


def test_the_error_names_program_and_thread(run, fault):
    body = "setp.eq.u32 %p1, %r2, 133; @%p1 ld.global.b32 %r3, [%d0+4];"
    with pytest.raises(fault, match=r"program \(2, 0, 0\), thread 5: 4 bytes at 0x\w+ are in no tensor"):
        run(body, torch.zeros(1), torch.zeros(1), blocks=3)
