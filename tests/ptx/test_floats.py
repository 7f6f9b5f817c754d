"""Arithmetic on floats and conversions against exact fractions, rounded once."""

import math
from fractions import Fraction

import pytest
import torch

INTEGER = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
NAMES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
SMALL = (torch.float16, torch.bfloat16)


def numbers(count, columns, dtype):
    """Of all sizes, subnormal ones among them; sums of some rows nearly cancel."""
    generator = torch.Generator().manual_seed(0)
    low, high = {torch.float16: (-16, 8), torch.bfloat16: (-60, 60), torch.float32: (-60, 60)}[dtype]
    size = torch.randint(low, high, (count, columns), generator=generator)
    x = torch.randn(count, columns, generator=generator, dtype=torch.double) * 2.0**size
    x[: count // 2] = torch.randn(count // 2, columns, generator=generator, dtype=torch.double)
    if columns == 3:
        x[: count // 8, 2] = -x[: count // 8, 0] * x[: count // 8, 1]
    return x.to(dtype)


def bits(t):
    return t.view(INTEGER[t.dtype])


def floats(integers, dtype):
    width = 16 if dtype in SMALL else 32
    signed = [v - 2**width if v >> (width - 1) else v for v in integers]
    return torch.tensor(signed, dtype=INTEGER[dtype]).view(dtype)


def nearest(x: Fraction, dtype) -> float:
    """x rounded to a format, ties to even."""
    info = torch.finfo(dtype)
    if x == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(x)))
    exponent += (abs(x) >= Fraction(2) ** (exponent + 1)) - (abs(x) < Fraction(2) ** exponent)
    unit = Fraction(info.eps) * Fraction(2) ** max(exponent, round(math.log2(info.smallest_normal)))
    q = round(x / unit) * unit
    return float(q) if abs(q) <= Fraction(info.max) else math.copysign(math.inf, q)


EXACT = {
    "add.{}": lambda a, b: a + b,
    "sub.{}": lambda a, b: a - b,
    "mul.{}": lambda a, b: a * b,
    "fma.rn.{}": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.values())
@pytest.mark.parametrize("name, right", EXACT.items(), ids=EXACT)
def test_sums_and_products_are_rounded_once(name, right, dtype, each):
    arity = right.__code__.co_argcount
    rows = numbers(1200, arity, dtype)
    instruction = name.format(NAMES[dtype]) + " {}" + ", {}" * arity
    found = floats(each(instruction, bits(rows), dtype.itemsize, dtype.itemsize), dtype)
    wanted = [nearest(right(*map(Fraction, row)), dtype) for row in rows.tolist()]
    assert torch.equal(found.double(), torch.tensor(wanted, dtype=torch.double))
    if dtype in SMALL:  # two at once
        pairs = bits(torch.stack([rows, rows.flip(0)], dim=2).contiguous()).view(torch.int32)[..., 0]
        both = each(name.format(NAMES[dtype] + "x2") + " {}" + ", {}" * arity, pairs)
        low, high = (floats([v >> s & 0xFFFF for v in both], dtype) for s in (0, 16))
        assert torch.equal(bits(low), bits(found)) and torch.equal(bits(high), bits(found.flip(0)))


def test_rounding_towards_minus_infinity(each):
    rows = numbers(1200, 3, torch.float32)
    found = floats(each("fma.rm.f32 {}, {}, {}, {}", bits(rows)), torch.float32)
    above = torch.nextafter(found, torch.tensor(math.inf))
    for (a, b, c), low, high in zip(rows.tolist(), found.tolist(), above.tolist(), strict=True):
        assert Fraction(low) <= Fraction(a) * Fraction(b) + Fraction(c) < Fraction(high)


APPROXIMATE = {
    "ex2.approx.f32": (lambda x: 2.0**x, (-100, 100), 2**-22.5),
    "lg2.approx.f32": (math.log2, (0.01, 100), 2**-22),
    "rsqrt.approx.f32": (lambda x: x**-0.5, (1e-20, 1e20), 2**-22.9),
    "sqrt.approx.f32": (math.sqrt, (1e-20, 1e20), 2**-23),
    "rcp.approx.f32": (lambda x: 1 / x, (1e-20, 1e20), 2**-23),
    "sqrt.rn.f32": (math.sqrt, (1e-20, 1e20), 2**-24),
    "rcp.rn.f32": (lambda x: 1 / x, (1e-20, 1e20), 2**-24),
    "tanh.approx.f32": (math.tanh, (-4, 4), 2**-11),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_functions_are_as_near_as_ptx_says(name, each):
    right, (low, high), limit = APPROXIMATE[name]
    spread = (
        torch.logspace(math.log10(low), math.log10(high), 500) if low > 0 else torch.linspace(low, high, 500)
    )
    x = spread.float()[:, None].contiguous()
    found = floats(each(name + " {}, {}", bits(x)), torch.float32).double()
    wanted = torch.tensor([right(v) for v in x[:, 0].tolist()], dtype=torch.double)
    assert ((found - wanted).abs() <= limit * wanted.abs().clamp(min=1e-4 if "lg2" in name else 0)).all()


@pytest.mark.parametrize("name", ["div.full.f32", "div.approx.f32", "div.rn.f32"])
def test_division(name, each):
    rows = numbers(1000, 2, torch.float32)
    found = floats(each(name + " {}, {}, {}", bits(rows)), torch.float32).tolist()
    for (a, b), got in zip(rows.tolist(), found, strict=True):
        exact = Fraction(a) / Fraction(b)
        if name.endswith("rn.f32"):
            assert got == nearest(exact, torch.float32)
        else:
            assert abs(Fraction(got) - exact) <= abs(exact) * Fraction(2**-22)


NAN, INF, TINY = math.nan, math.inf, 1e-40
SPECIAL = [0.0, -0.0, 1.0, -1.5, INF, -INF, NAN, TINY, -TINY, 3e38]


def special_pairs():
    return torch.tensor([[a, b] for a in SPECIAL for b in SPECIAL])


@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("nan", ["", ".NaN"])
def test_extremes(name, nan, each):
    rows = special_pairs()
    found = floats(each(f"{name}{nan}.f32 {{}}, {{}}, {{}}", bits(rows)), torch.float32).tolist()
    choose = min if name == "min" else max
    for (a, b), got in zip(rows.tolist(), found, strict=True):
        if nan and (math.isnan(a) or math.isnan(b)):
            assert math.isnan(got)
            continue
        candidates = [v for v in (a, b) if not math.isnan(v)] or [NAN]
        right = choose(candidates, key=lambda v: (v, math.copysign(1, v)))
        assert got == right or math.isnan(got) and math.isnan(right)
        assert math.isnan(right) or math.copysign(1, got) == math.copysign(1, right)


RELATIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a < b or a > b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
RELATIONS |= {
    f"{name}u": lambda a, b, right=right: right(a, b) or a != a or b != b for name, right in RELATIONS.items()
}
RELATIONS |= {"num": lambda a, b: a == a and b == b, "nan": lambda a, b: a != a or b != b}


@pytest.mark.parametrize("name", RELATIONS)
def test_comparisons_with_nan(name, each):
    rows = special_pairs()
    found = each(f"setp.{name}.f32 %p5, {{1}}, {{2}};\n@%p1 selp.b32 {{0}}, 1, 0, %p5", bits(rows))
    assert found == [int(RELATIONS[name](a, b)) for a, b in rows.tolist()]


def test_a_nan_of_arithmetic_is_the_canonical_one(each):
    rows = torch.tensor([[INF, -INF], [NAN, 1.0], [-NAN, 1.0]])
    rows.view(torch.int32)[1, 0] = -1  # another payload
    assert each("add.f32 {}, {}, {}", bits(rows)) == [0x7FFFFFFF] * 3
    assert each("mov.b32 {}, {}", bits(rows)[1:2, :1]) == [0xFFFFFFFF]


def test_subnormal_numbers_are_zeros_where_the_instruction_says_so(each):
    rows = torch.tensor([[TINY, 1.0], [-TINY, 1.0], [1e-30, 1e-10], [2.0, 3.0]])
    assert floats(each("mul.f32 {}, {}, {}", bits(rows)), torch.float32).ne(0).all()
    found = floats(each("mul.ftz.f32 {}, {}, {}", bits(rows)), torch.float32)
    assert found.tolist() == [0, 0, 0, 6] and torch.signbit(found).tolist() == [False, True, False, False]


def all_floats():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, generator=generator) * 10.0 ** torch.randint(-42, 39, (4000,), generator=generator)
    ties = torch.tensor([1 + 2.0**-9, 1 + 3 * 2.0**-9, 1 + 2.0**-12, 1 + 3 * 2.0**-12, 65519.99, 65520.0])
    return torch.cat([torch.tensor(SPECIAL), ties, -ties, x])


@pytest.mark.parametrize("dtype", SMALL, ids=["f16", "bf16"])
def test_conversions_between_floats(dtype, each):
    x, name = all_floats(), NAMES[dtype]

    def same(found, wanted):
        assert torch.equal(found.isnan(), wanted.isnan())
        assert torch.equal(bits(found)[~found.isnan()], bits(wanted)[~wanted.isnan()])

    same(floats(each(f"cvt.rn.{name}.f32 {{}}, {{}}", bits(x)[:, None], 4, 2), dtype), x.to(dtype))
    both = each(f"cvt.rn.{name}x2.f32 {{}}, {{}}, {{}}", torch.stack([bits(x), bits(x.flip(0))], 1))
    same(floats([v >> 16 for v in both], dtype), x.to(dtype))
    same(floats([v & 0xFFFF for v in both], dtype), x.flip(0).to(dtype))
    every = torch.arange(-(2**15), 2**15)[:, None]
    same(
        floats(each(f"cvt.f32.{name} {{}}, {{}}", every, 2, 4), torch.float32),
        every[:, 0].short().view(dtype).float(),
    )


@pytest.mark.parametrize(
    "how, right", [("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)]
)
def test_conversions_to_integers(how, right, each):
    x = all_floats()
    found = each(f"cvt.{how}.s32.f32 {{}}, {{}}", bits(x)[:, None])
    for value, got in zip(x.tolist(), found, strict=True):
        bounded = 0 if math.isnan(value) else max(min(value, 2.0**31), -(2.0**31))
        assert got == min(max(right(bounded), -(2**31)), 2**31 - 1) % 2**32


def test_conversions_of_integers(each):
    x = torch.tensor([0, 1, -1, 2**24 + 1, 2**31 - 1, -(2**31), 12345, 70000])[:, None]
    assert floats(each("cvt.rn.f32.s32 {}, {}", x), torch.float32).tolist() == x[:, 0].float().tolist()
    assert each("cvt.s64.s32 {}, {}", x, 4, 8) == [v % 2**64 for v in x[:, 0].tolist()]
    assert each("cvt.u64.u32 {}, {}", x, 4, 8) == [v % 2**32 for v in x[:, 0].tolist()]
    assert each("cvt.u32.u64 {}, {}", x << 3, 8, 4) == [(v << 3) % 2**32 for v in x[:, 0].tolist()]
    assert each("cvt.u16.u32 {}, {}", x, 4, 2) == [v % 2**16 for v in x[:, 0].tolist()]
    assert each("cvt.u32.u16 {}, {}", x % 2**15, 2, 4) == [v % 2**15 for v in x[:, 0].tolist()]
    halves = floats(each("cvt.rn.f16.s32 {}, {}", x, 4, 2), torch.float16)
    assert halves.tolist() == [nearest(Fraction(v), torch.float16) for v in x[:, 0].tolist()]


def test_saturation(each):
    x = torch.tensor([-1.0, 0.25, 1.5, NAN, -0.0])
    assert floats(each("cvt.sat.f32.f32 {}, {}", bits(x)[:, None]), torch.float32).tolist() == [
        0,
        0.25,
        1,
        0,
        0,
    ]
