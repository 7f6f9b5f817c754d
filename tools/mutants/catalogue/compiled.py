"""Bugs in what a compiler emits or in what it is told: only what executes compiled code sees them."""

from .mutant import Mutant

LAUNCHES, RECORD = "tools/ptx/triton_launches.py", "tools/aot/record.py"
EMITTED = 'text = built.asm["ptx"]'


def on(architecture: int, part: str) -> str:
    """A part of `make ptx`."""
    return f"tests/ptx/test_suite.py -m '' -k {architecture}-{part}"


def emitted(architecture: int, name: str, kind: str, find: str, instead: str, part: str = "long") -> Mutant:
    """The compiler emits something else: `find`, a regular expression, is replaced in the PTX."""
    edits = {EMITTED: f'text = __import__("re").sub({find!r}, {instead!r}, built.asm["ptx"])'}
    return Mutant(f"ptx{architecture}-{name}", kind, LAUNCHES, edits, on(architecture, part))


WAIT, COMMIT = r"cp\.async\.wait_group\s+\d+;", r"cp\.async\.commit_group;"
WGMMA_WAIT = r"wgmma\.wait_group\.sync\.aligned\s+\d+;"
DROPPED, FENCE, SWIZZLE, DTYPE = "dropped wait", "missing fence", "wrong swizzle", "another dtype"
COMPILED = [
    emitted(80, "copies-not-waited-for", DROPPED, WAIT, ""),
    emitted(90, "copies-not-waited-for", DROPPED, WAIT, ""),
    emitted(80, "more-groups-in-flight", DROPPED, r"(cp\.async\.wait_group\s+)\d+;", r"\g<1>8;"),
    emitted(90, "copies-in-no-group", DROPPED, COMMIT, ""),
    emitted(90, "products-not-waited-for", DROPPED, WGMMA_WAIT, ""),
    emitted(90, "one-product-in-flight", DROPPED, r"(wgmma\.wait_group\.sync\.aligned\s+)0;", r"\g<1>1;"),
    emitted(80, "no-barriers", FENCE, r"bar\.sync\s+0;", ""),
    emitted(90, "no-barriers", FENCE, r"bar\.sync\s+0;", ""),
    emitted(90, "no-proxy-fence", FENCE, r"fence\.proxy\.async\S*;", ""),
    emitted(90, "no-wgmma-fence", FENCE, r"wgmma\.fence\.sync\.aligned;", ""),
    emitted(90, "another-swizzle", SWIZZLE, r"\b4611686\d{12}\b", "-9223371899415822336"),
    emitted(80, "rows-not-transposed", SWIZZLE, r"(ldmatrix\.sync\.aligned\.m8n8\.x4)\.trans", r"\1"),
    emitted(90, "b-transposed", SWIZZLE, r"(wgmma\.mma_async[^;]*), 0;", r"\1, 1;"),
    emitted(
        90,
        "accumulators-start-anew",
        "another sum",
        r"(wgmma\.mma_async[^;]*), %p\d+, 1, 1,",
        r"\1, 0, 1, 1,",
    ),
    emitted(80, "products-in-f16", DTYPE, r"f32\.bf16\.bf16\.f32", "f32.f16.f16.f32"),
    emitted(90, "products-in-f16", DTYPE, r"f32\.bf16\.bf16\b", "f32.f16.f16"),
    emitted(80, "halves-exchanged", DTYPE, r"(x2\.f32\s+%r\d+), (%r\d+), (%r\d+);", r"\1, \3, \2;", "short"),
    emitted(
        80,
        "neighbour-of-a-shuffle",
        "wrong lane",
        r"(bfly\.b32[^;]*), 2, 31, -1;",
        r"\1, 4, 31, -1;",
        "short",
    ),
    emitted(90, "loads-without-their-mask", "mask", r"@%p\d+ (ld\.global)", r"\1", "short"),
    emitted(80, "stores-without-their-mask", "mask", r"@%p\d+ (st\.global)", r"\1", "short"),
    Mutant(
        "every-pointer-is-aligned",
        "alignment hint that lies",
        RECORD,
        {"if at % 16 == 0:": "if at % 1 == 0:"},
        on(90, "short"),
    ),
    Mutant(
        "every-integer-is-divisible",
        "alignment hint that lies",
        RECORD,
        {"if value % 16 == 0:": "if value % 1 == 0:"},
        on(80, "short"),
    ),
]
