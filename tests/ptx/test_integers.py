"""Instructions on integers and bits against Python's own integers."""

import random

import pytest
import torch


def signed(v, bits=32):
    return v - 2**bits if v >> (bits - 1) else v


def permuted(a, b, c):
    """Bytes of b:a by the four low digits of c; with the high bit of a digit, the byte's sign."""
    both = (b << 32 | a).to_bytes(8, "little")
    picked = [(both[c >> 4 * n & 7], c >> 4 * n & 8) for n in range(4)]
    return int.from_bytes(bytes((0xFF if v & 0x80 else 0) if s else v for v, s in picked), "little")


def field(a, b, c, is_signed):
    at, length = b & 0xFF, c & 0xFF
    x = (signed(a) if is_signed else a) >> at
    if length < 32:
        x &= 2**length - 1
        if is_signed and length and x >> (length - 1):
            x -= 2**length
    return x


def inserted(a, b, c, d):
    """`d` bits of a into b, from bit c on."""
    at, length = c & 0xFF, d & 0xFF
    mask = (2**length - 1) << at
    return b & ~mask | a << at & mask


def divided(a, b):
    """Towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


WORDS = {
    "add.s32 {}, {}, {}": lambda a, b: a + b,
    "add.s16x2 {}, {}, {}": lambda a, b: (a + b & 0xFFFF) | (a >> 16) + (b >> 16) << 16,
    "sub.s32 {}, {}, {}": lambda a, b: a - b,
    "mul.lo.s32 {}, {}, {}": lambda a, b: a * b,
    "mul.hi.u32 {}, {}, {}": lambda a, b: a * b >> 32,
    "mul.hi.s32 {}, {}, {}": lambda a, b: signed(a) * signed(b) >> 32,
    "mad.lo.s32 {}, {}, {}, {}": lambda a, b, c: a * b + c,
    "mad.hi.u32 {}, {}, {}, {}": lambda a, b, c: (a * b >> 32) + c,
    "min.s32 {}, {}, {}": lambda a, b: min(signed(a), signed(b)),
    "max.s32 {}, {}, {}": lambda a, b: max(signed(a), signed(b)),
    "min.u32 {}, {}, {}": min,
    "max.u32 {}, {}, {}": max,
    "neg.s32 {}, {}": lambda a: -a,
    "abs.s32 {}, {}": lambda a: abs(signed(a)),
    "not.b32 {}, {}": lambda a: ~a,
    "and.b32 {}, {}, {}": lambda a, b: a & b,
    "or.b32 {}, {}, {}": lambda a, b: a | b,
    "xor.b32 {}, {}, {}": lambda a, b: a ^ b,
    "shl.b32 {}, {}, {}": lambda a, b: a << b if b < 32 else 0,
    "shr.u32 {}, {}, {}": lambda a, b: a >> b,
    "shr.s32 {}, {}, {}": lambda a, b: signed(a) >> b,
    "popc.b32 {}, {}": lambda a: a.bit_count(),
    "clz.b32 {}, {}": lambda a: 32 - a.bit_length(),
    "bfind.u32 {}, {}": lambda a: a.bit_length() - 1,
    "bfind.shiftamt.u32 {}, {}": lambda a: 32 - a.bit_length() if a else -1,
    "brev.b32 {}, {}": lambda a: int(f"{a:032b}"[::-1], 2),
    "prmt.b32 {}, {}, {}, {}": permuted,
    "bfe.u32 {}, {}, {}, {}": lambda a, b, c: field(a, b, c, False),
    "bfe.s32 {}, {}, {}, {}": lambda a, b, c: field(a, b, c, True),
    "bfi.b32 {}, {}, {}, {}, {}": inserted,
    "lop3.b32 {}, {}, {}, {}, 0xCA": lambda a, b, c: a & b | ~a & c,
    "lop3.b32 {}, {}, {}, {}, 0x96": lambda a, b, c: a ^ b ^ c,
    "shf.l.wrap.b32 {}, {}, {}, {}": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.wrap.b32 {}, {}, {}, {}": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.l.clamp.b32 {}, {}, {}, {}": lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    "shf.r.clamp.b32 {}, {}, {}, {}": lambda a, b, c: (b << 32 | a) >> min(c, 32),
}
HALVES = {
    "add.s16 {}, {}, {}": lambda a, b: a + b,
    "and.b16 {}, {}, {}": lambda a, b: a & b,
    "or.b16 {}, {}, {}": lambda a, b: a | b,
    "shl.b16 {}, {}, 3": lambda a: a << 3,
    "shr.u16 {}, {}, 5": lambda a: a >> 5,
    "shr.s16 {}, {}, 5": lambda a: signed(a, 16) >> 5,
}
LONGS = {
    "add.s64 {}, {}, {}": lambda a, b: a + b,
    "sub.s64 {}, {}, {}": lambda a, b: a - b,
    "mul.lo.s64 {}, {}, {}": lambda a, b: a * b,
    "mul.hi.u64 {}, {}, {}": lambda a, b: a * b >> 64,
    "mul.hi.s64 {}, {}, {}": lambda a, b: signed(a, 64) * signed(b, 64) >> 64,
    "mad.lo.s64 {}, {}, {}, {}": lambda a, b, c: a * b + c,
    "min.s64 {}, {}, {}": lambda a, b: min(signed(a, 64), signed(b, 64)),
    "max.s64 {}, {}, {}": lambda a, b: max(signed(a, 64), signed(b, 64)),
    "neg.s64 {}, {}": lambda a: -a,
    "or.b64 {}, {}, {}": lambda a, b: a | b,
    "and.b64 {}, {}, {}": lambda a, b: a & b,
    "shl.b64 {}, {}, 33": lambda a: a << 33,
    "shr.u64 {}, {}, 40": lambda a: a >> 40,
    "shr.s64 {}, {}, 40": lambda a: signed(a, 64) >> 40,
}
WIDE = {
    "mul.wide.u32 {}, {}, {}": lambda a, b: a * b,
    "mul.wide.s32 {}, {}, {}": lambda a, b: signed(a) * signed(b),
}


def words(bits, count=600):
    """Rows of 4; small numbers among them, which are positions and lengths of fields."""
    draw = random.Random(bits)
    rows = [[draw.getrandbits(bits) for _ in range(4)] for _ in range(count)]
    for row in rows[:200]:
        row[1:] = [draw.randrange(40) for _ in range(3)]
    rows[200] = [0] * 4
    rows[201] = [2**bits - 1] * 4
    rows[202] = [2 ** (bits - 1)] * 4
    return rows


def tensor(rows, bits):
    return torch.tensor([[signed(v, bits) for v in row] for row in rows])


@pytest.mark.parametrize(
    "instruction, right, bits, out_bits",
    [
        *((name, right, 32, 32) for name, right in WORDS.items()),
        *((name, right, 16, 16) for name, right in HALVES.items()),
        *((name, right, 64, 64) for name, right in LONGS.items()),
        *((name, right, 32, 64) for name, right in WIDE.items()),
    ],
)
def test_integers(instruction, right, bits, out_bits, each):
    rows = words(bits)
    arity = instruction.count("{}") - 1
    found = each(instruction, tensor(rows, bits)[:, :arity], bits // 8, out_bits // 8)
    wanted = [right(*row[:arity]) % 2**out_bits for row in rows]
    assert found == wanted


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", ["div.s", "div.u", "rem.s", "rem.u"])
def test_division_is_towards_zero(name, bits, each):
    rows = [[a, b or 1] for a, b, *_ in words(bits)]
    number = (lambda v: signed(v, bits)) if name.endswith("s") else int
    rows = [row for row in rows if not (name.endswith("s") and row[0] == 2 ** (bits - 1))]
    found = each(f"{name}{bits} {{}}, {{}}, {{}}", tensor(rows, bits), bits // 8, bits // 8)
    for (a, b), got in zip(rows, found, strict=True):
        quotient = divided(number(a), number(b))
        right = quotient if name.startswith("div") else number(a) - quotient * number(b)
        assert got == right % 2**bits


RELATIONS = {
    "eq.s32": lambda a, b: a == b,
    "ne.s32": lambda a, b: a != b,
    "lt.u32": lambda a, b: a < b,
    "lt.s32": lambda a, b: signed(a) < signed(b),
    "le.s32": lambda a, b: signed(a) <= signed(b),
    "gt.s32": lambda a, b: signed(a) > signed(b),
    "ge.u32": lambda a, b: a >= b,
}


@pytest.mark.parametrize("relation, right", RELATIONS.items(), ids=RELATIONS)
def test_comparisons(relation, right, run):
    """Both results, with a third operand, and under a guard: 8 bits of what was found."""
    rows = words(32, 320)
    rows[:64] = [[row[0], row[0], *row[2:]] for row in rows[:64]]
    body = f"""
    mul.wide.u32 %d2, %r2, 16; add.s64 %d3, %d0, %d2; mul.wide.u32 %d4, %r2, 4; add.s64 %d5, %d1, %d4;
    ld.global.v2.b32 {{%r10, %r11}}, [%d3]; ld.global.b32 %r12, [%d3+8];
    and.b32 %r13, %r12, 1; setp.ne.b32 %p2, %r13, 0; mov.pred %p3, %p2; mov.pred %p4, %p2;
    setp.{relation} %p5|%p6, %r10, %r11;
    setp.{relation.replace(".", ".and.")} %p7, %r10, %r11, %p2;
    setp.{relation.replace(".", ".or.")} %p8|%p9, %r10, %r11, !%p2;
    setp.{relation.replace(".", ".xor.")} %p10, %r10, %r11, %p2;
    @%p2 setp.{relation} %p3, %r10, %r11;
    @!%p2 setp.{relation} %p4, %r10, %r11;
    selp.b32 %r20, 1, 0, %p5; selp.b32 %r21, 2, 0, %p6; selp.b32 %r22, 4, 0, %p7; selp.b32 %r23, 8, 0, %p8;
    selp.b32 %r24, 16, 0, %p9; selp.b32 %r25, 32, 0, %p10;
    selp.b32 %r26, 64, 0, %p3; selp.b32 %r27, 128, 0, %p4;
    or.b32 %r20, %r20, %r21; or.b32 %r20, %r20, %r22; or.b32 %r20, %r20, %r23; or.b32 %r20, %r20, %r24;
    or.b32 %r20, %r20, %r25; or.b32 %r20, %r20, %r26; or.b32 %r20, %r20, %r27;
    st.global.b32 [%d5], %r20;
    """
    given = tensor(rows, 32).int().contiguous()
    out = run(body, given, torch.zeros(320, dtype=torch.int32), blocks=5)
    for (a, b, c, _), got in zip(rows, out.tolist(), strict=True):
        r, p = right(a, b), bool(c & 1)
        bits = [r, not r, r and p, r or not p, not r or not p, r != p, r if p else p, p if p else r]
        assert got == sum(bit << n for n, bit in enumerate(bits))


def test_moves_between_vectors_and_registers(run):
    body = """
    mul.wide.u32 %d2, %r2, 8; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
    ld.global.b64 %d5, [%d3];
    mov.b64 {%r10, %r11}, %d5; mov.b32 {%h1, %h2}, %r10; mov.b32 %r12, {%h2, %h1};
    mov.b64 {%h3, %h4, %h5, %h6}, %d5; mov.b32 %r13, {%h6, %h5};
    mov.b64 %d6, {%r13, %r12}; st.global.b64 [%d4], %d6;
    """
    given = torch.arange(64 * 4, dtype=torch.int16)
    out = run(body, given, torch.zeros(64 * 4, dtype=torch.int16)).view(64, 4)
    assert torch.equal(out, given.view(64, 4)[:, [3, 2, 1, 0]])
