"""Matrix units against torch, from the definitions of fragments and of layouts in shared memory."""

import pytest
import torch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
LANES = torch.arange(32)


def fragment(matrix):
    """16-bit [8, 8] -> [32] registers: lane l holds row l / 4, columns 2 (l % 4) and the next."""
    pairs = matrix.contiguous().view(torch.int32)
    return pairs[LANES // 4, LANES % 4]


def accumulators(matrix):
    """fp32 [8, 8] -> [2, 32] registers in the same places."""
    return torch.stack([matrix[LANES // 4, 2 * (LANES % 4) + half] for half in (0, 1)])


def blocks(matrix):
    """[R, C] -> [R/8, C/8, 8, 8]"""
    rows, columns = matrix.shape
    return matrix.view(rows // 8, 8, columns // 8, 8).permute(0, 2, 1, 3)


def load_registers(count, first=20):
    """Registers %r{first}.. of lane l from [count, 32] words."""
    lines = ["shl.b32 %r3, %r0, 2; cvt.u64.u32 %d2, %r3; add.s64 %d3, %d0, %d2;"]
    lines += [f"ld.global.b32 %r{first + n}, [%d3+{128 * n}];" for n in range(count)]
    return "".join(lines)


def names(first, count):
    return "{" + ", ".join(f"%r{first + n}" for n in range(count)) + "}"


@pytest.mark.parametrize("K", [8, 16])
@pytest.mark.parametrize("name", DTYPES)
def test_mma(name, K, run):
    a, b = torch.randn(16, K).to(DTYPES[name]), torch.randn(K, 8).to(DTYPES[name])
    c = torch.randn(16, 8)
    left = [fragment(blocks(a)[row, k]) for k in range(K // 8) for row in (0, 1)]
    right = [fragment(blocks(b.t().contiguous())[0, k]) for k in range(K // 8)]
    sums = [register for row in (0, 1) for register in accumulators(blocks(c)[row, 0])]
    given = torch.stack([*left, *right, *(t.view(torch.int32) for t in sums)])
    count = len(given)
    operands = names(20, K // 4), names(20 + K // 4, K // 8), names(20 + count - 4, 4)
    body = (
        load_registers(count) + f"mma.sync.aligned.m16n8k{K}.row.col.f32.{name}.{name}.f32 {names(60, 4)}, "
    )
    body += ", ".join(operands) + ";add.s64 %d4, %d1, %d2;"
    body += "".join(f"st.global.b32 [%d4+{128 * n}], %r{60 + n};" for n in range(4))
    out = run(body, given, torch.zeros(4, 32), threads=32)
    gold = (a.double() @ b.double() + c.double()).float()
    wanted = torch.cat([accumulators(blocks(gold)[row, 0]) for row in (0, 1)])
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
    assert (out == wanted).float().mean() > 0.9


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_rows_of_matrices(count, transposed, run):
    """ldmatrix, then stmatrix to another place: each row where its lane says."""
    matrices = torch.arange(count * 64, dtype=torch.int16).view(count, 8, 8)
    order = torch.randperm(8 * count)  # where row n lies, in units of 16 bytes
    place = torch.cat([order, torch.zeros(32 - 8 * count, dtype=torch.long)]).int()
    memory = torch.zeros(8 * count, 8, dtype=torch.int16)
    memory[order] = matrices.view(-1, 8)
    given = torch.cat([place, memory.flatten().view(torch.int32)])
    body = f"""
    mov.u32 %r20, dynamic; mul.wide.u32 %d2, %r0, 4; add.s64 %d3, %d0, %d2; ld.global.b32 %r10, [%d3];
    mov.u32 %r11, 0;
    $copy: mad.lo.s32 %r12, %r11, 32, %r0; shl.b32 %r12, %r12, 2; add.u32 %r13, %r20, %r12;
    cvt.u64.u32 %d5, %r12; add.s64 %d6, %d0, %d5; ld.global.b32 %r14, [%d6+128]; st.shared.b32 [%r13], %r14;
    add.s32 %r11, %r11, 1; setp.lt.s32 %p1, %r11, {count}; @%p1 bra $copy;
    bar.sync 0;
    shl.b32 %r15, %r10, 4; add.u32 %r15, %r20, %r15;
    ldmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 {names(30, count)}, [%r15];
    add.s64 %d4, %d1, %d2;
    """
    body += "".join(f"st.global.b32 [%d4+{128 * n}], %r{30 + n};" for n in range(count))
    body += f"stmatrix.sync.aligned.m8n8.x{count}{transposed}.shared.b16 [%r15+2048], {names(30, count)};"
    body += f"""
    bar.sync 0; mov.u32 %r11, 0;
    $back: mad.lo.s32 %r12, %r11, 32, %r0; shl.b32 %r12, %r12, 2; add.u32 %r13, %r20, %r12;
    ld.shared.b32 %r14, [%r13+2048]; cvt.u64.u32 %d5, %r12; add.s64 %d6, %d1, %d5;
    st.global.b32 [%d6+{128 * count}], %r14;
    add.s32 %r11, %r11, 1; setp.lt.s32 %p1, %r11, {count}; @%p1 bra $back;
    """
    out = run(body, given.int(), torch.zeros(2 * count, 32, dtype=torch.int32), threads=32)
    wanted = torch.stack([fragment(m.t().contiguous() if transposed else m) for m in matrices])
    assert torch.equal(out[:count], wanted)
    assert torch.equal(out[count:].flatten(), memory.flatten().view(torch.int32))


# ---- wgmma. Layouts of [rows, 16] in shared memory: where an element lies, in bytes.


def swizzled(offset, width):
    """Units of 16 bytes are exchanged within `width` bytes by the number of 128 bytes before them."""
    units = width // 16
    return offset ^ (offset // 128 % units) * 16


def k_major(row, k, width):
    """A row's elements along K lie beside each other, rows of `width` bytes in groups of 8."""
    if width == 16:  # no swizzle: 8 x 16 bytes one after the other, first along K
        return row // 8 * 256 + k // 8 * 128 + row % 8 * 16 + k % 8 * 2
    return swizzled(row // 8 * 8 * width + row % 8 * width + k * 2, width)


def rows_major(row, k, width):
    """Elements along M or N lie beside each other, `width` bytes of them for each k, in groups of 8."""
    if width == 16:  # units of 8 x 8, first along K
        return row // 8 * 256 + k // 8 * 128 + k % 8 * 16 + row % 8 * 2
    each = width // 2
    return swizzled(row // each * 16 * width + k * width + row % each * 2, width)


def descriptor(start, width, along_k):
    """Bits of a matrix descriptor for these layouts; `start` in bytes."""
    swizzle = {16: 0, 32: 3, 64: 2, 128: 1}[width]
    if along_k:
        leading, stride = (128, 256) if width == 16 else (16, 8 * width)
    else:
        leading, stride = (128, 256) if width == 16 else (16 * width, 8 * width)
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | swizzle << 62


def placed(matrix, layout, width):
    """[rows, 16] as it lies in shared memory, in words, a multiple of 1024 bytes."""
    elements = [(layout(row, k, width) // 2, row, k) for row in range(len(matrix)) for k in range(16)]
    memory = torch.zeros(-(-max(elements)[0] // 512) * 512, dtype=torch.int16)
    for place, row, k in elements:
        memory[place] = matrix.view(torch.int16)[row, k]
    return memory.view(torch.int32)


FENCE = "fence.proxy.async.shared::cta; bar.sync 0; wgmma.fence.sync.aligned;"
WAIT = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"


def fill(words):
    """Words of %d0 into shared memory, by 128 threads."""
    lines = ["mov.u32 %r20, dynamic;"]
    for n in range(0, words, 128):
        lines += [
            f"add.s32 %r21, %r0, {n}; shl.b32 %r21, %r21, 2; cvt.u64.u32 %d2, %r21; add.s64 %d3, %d0, %d2;"
        ]
        lines += ["ld.global.b32 %r22, [%d3]; add.u32 %r23, %r20, %r21; st.shared.b32 [%r23], %r22;"]
    return "".join(lines)


def described(register, start, width, along_k):
    """A 64-bit register with the descriptor of what lies `start` bytes into the dynamic shared memory."""
    bits = descriptor(0, width, along_k)
    bits = bits - 2**64 if bits >> 63 else bits
    address = f"add.u32 %r24, %r20, {start}; shr.u32 %r24, %r24, 4; cvt.u64.u32 {register}, %r24;"
    return address + f"or.b64 {register}, {register}, {bits};"


def to_memory(N, first=60):
    """Accumulators of each thread to %d1 [N/2, 128]."""
    lines = ["mul.wide.u32 %d6, %r0, 4; add.s64 %d6, %d1, %d6;"]
    return "".join(lines + [f"st.global.b32 [%d6+{512 * n}], %r{first + n};" for n in range(N // 2)])


def whole(out, N):
    """[N/2, 128] registers -> [64, N]"""
    matrix = torch.zeros(64, N)
    thread = torch.arange(128)
    for n in range(N // 2):
        row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (n // 2 % 2)
        matrix[row, 8 * (n // 4) + 2 * (thread % 4) + n % 2] = out[n]
    return matrix


CASES = [
    (N, width_a, width_b, a_along_k, b_along_k)
    for N in (8, 64, 96)
    for width_a, width_b in ((16, 16), (32, 128), (64, 32), (128, 64))
    for a_along_k in (True, False)
    for b_along_k in (True, False)
    if b_along_k or N % (width_b // 2) == 0
]


@pytest.mark.parametrize("N, width_a, width_b, a_along_k, b_along_k", CASES)
def test_wgmma_reads_every_layout(N, width_a, width_b, a_along_k, b_along_k, run):
    name = "bf16" if width_a in (16, 64) else "f16"
    a, b = torch.randn(64, 16).to(DTYPES[name]), torch.randn(N, 16).to(DTYPES[name])
    layouts = [k_major if along_k else rows_major for along_k in (a_along_k, b_along_k)]
    left, right = placed(a, layouts[0], width_a), placed(b, layouts[1], width_b)
    given = torch.cat([left, right])
    body = fill(len(given)) + described("%d10", 0, width_a, a_along_k)
    body += described("%d11", 4 * len(left), width_b, b_along_k)
    body += "".join(f"mov.b32 %r{60 + n}, 0;" for n in range(N // 2)) + FENCE + "mov.pred %p1, 0;"
    body += f"wgmma.mma_async.sync.aligned.m64n{N}k16.f32.{name}.{name} {names(60, N // 2)}, "
    body += f"%d10, %d11, %p1, 1, 1, {int(not a_along_k)}, {int(not b_along_k)};" + WAIT + to_memory(N)
    out = run(body, given, torch.zeros(N // 2, 128), threads=128, shared=4 * len(given))
    wanted = (a.double() @ b.double().t()).float()
    torch.testing.assert_close(whole(out, N), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("when", ["early", "late"])
def test_wgmma_with_a_from_registers_adds_to_what_is_there(when, run):
    N, width = 16, 32
    a, b = torch.randn(64, 16).half(), torch.randn(N, 16).half()
    left = torch.stack(
        [torch.cat([fragment(blocks(a)[2 * w + n % 2, n // 2]) for w in range(4)]) for n in range(4)]
    )
    given = torch.cat([placed(b, k_major, width), left.flatten()])
    words = len(given) - 4 * 128
    body = (
        fill(words) + described("%d11", 0, width, True) + "mul.wide.u32 %d4, %r0, 4; add.s64 %d4, %d0, %d4;"
    )
    body += "".join(f"ld.global.b32 %r{30 + n}, [%d4+{4 * words + 512 * n}];" for n in range(4))
    body += "".join(f"mov.b32 %r{60 + n}, 0f3F800000;" for n in range(N // 2)) + FENCE + "mov.pred %p1, -1;"
    product = f"wgmma.mma_async.sync.aligned.m64n{N}k16.f32.f16.f16 {names(60, N // 2)}, {names(30, 4)}, "
    product += "%d11, %p1, 1, 1, 0;"
    body += product + product + WAIT + to_memory(N)
    out = run(body, given, torch.zeros(N // 2, 128), threads=128, products=when)
    wanted = (1 + 2 * (a.double() @ b.double().t())).float()
    torch.testing.assert_close(whole(out, N), wanted, rtol=1e-5, atol=1e-5)
