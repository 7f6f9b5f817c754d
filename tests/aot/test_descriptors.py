"""Matrix products whose descriptor has an address in its upper half are found, in what ptxas 12.8 made of our
attention before it had one loop (wrong on an H200) and in shorter code."""

import pytest

from tools.aot.descriptors import wrong_descriptors


def code(*instructions: str) -> str:
    """Text as cuobjdump prints it."""
    return "".join(
        f"        /*{16 * i:04x}*/   {text} ;   /* 0x0 */\n" for i, text in enumerate(instructions)
    )


WRONG = code(  # R24 to R31 are weights, in shared memory is V's second part; UR8 holds its address
    "R2UR UR8, R0",
    "UIADD3 UR4, UP0, UR8, 0x20, URZ",
    "UIADD3.X UR5, UR8, -0x3ffffff0, URZ, UP0, !UPT",
    "UMOV UR6, UR4",
    "UMOV UR7, UR5",
    "HGMMA.64x16x16.F32 R120, R28, gdesc[UR4].tnspB, R120",
    "UIADD3.64 UR10, UR6, 0x20, URZ",
    "HGMMA.64x16x16.F32 R120, R32, gdesc[UR8].tnspB, R120, gsb0",
    "EXIT",
)
RIGHT = WRONG.replace("UIADD3.X UR5, UR8,", "UIADD3.X UR5, URZ,")


def test_an_address_in_the_upper_half_is_found_in_every_product_that_takes_it():
    assert wrong_descriptors(WRONG) == 2
    assert wrong_descriptors(RIGHT) == 0


def test_both_operands_in_shared_memory_are_looked_at():
    fixed = ("UMOV UR5, 0x40000040", "UMOV UR7, 0x40000040")
    product = "HGMMA.64x128x16.F32 R24, gdesc[UR4], RZ, !UPT"
    assert wrong_descriptors(code(*fixed, product, "EXIT")) == 0
    for i, register in enumerate((5, 7)):
        moved = [*fixed]
        moved[i] = f"UIADD3.X UR{register}, UR9, 0x40000040, URZ, UP0, !UPT"
        assert wrong_descriptors(code(*moved, product, "EXIT")) == 1


ADDED = "UIADD3.X UR7, UR8, -0x7fffffe0, URZ, UP0, !UPT"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ((ADDED,), 1),
        (("UMOV UR8, URZ", ADDED), 0),
        (("UMOV UR8, 0x1", ADDED), 0),
        (("UIADD3.X UR7, UR8, URZ, URZ, UP0, !UPT",), 0),  # a vector register's: not looked into
        ((ADDED, "UMOV UR15, UR7", "UMOV UR7, UR15"), 1),
        ((ADDED, "UIADD3.64 UR6, UR6, 0x20, URZ"), 1),
        ((ADDED, "UMOV UR20, 0xfffffffe", "UMOV UR21, 0x7fffffdf", "UIADD3.64 UR6, UR6, -UR20, URZ"), 1),
        (("UMOV UR20, 0xfffffffe", "UMOV UR21, 0x7fffffdf", "UIADD3.64 UR6, UR6, -UR20, URZ"), 0),
        ((ADDED, "UIADD3.X UR7, UR7, URZ, URZ, UP0, !UPT"), 1),
        ((ADDED, "@UP0 UMOV UR7, 0x80000020"), 1),
        (("@UP0 " + ADDED,), 1),
        ((ADDED, "UMOV UR7, 0x80000020"), 0),
        ((ADDED, "R2UR UR7, R5"), 0),
        ((ADDED, "ULDC.64 UR6, c[0x0][0x228]"), 0),
    ],
)
def test_additions_and_moves_are_followed_and_nothing_else(change, found):
    start = ("R2UR UR6, R0", "R2UR UR8, R0", "UMOV UR7, 0x80000020")
    product = "HGMMA.64x16x16.F32 R120, R28, gdesc[UR4].tnspB, R120, gsb0"
    assert wrong_descriptors(code(*start, *change, product, "EXIT")) == found


def test_every_path_counts():
    """A loop that changes the register behind the product, and a jump around the instruction that sets it."""
    product = "HGMMA.64x16x16.F32 R120, R28, gdesc[UR4].tnspB, R120, gsb0"
    loop = code("UMOV UR7, 0x80000020", product, ADDED, "@P0 BRA 0x10", "EXIT")
    assert wrong_descriptors(loop) == 1
    assert wrong_descriptors(loop.replace(ADDED, "UMOV UR7, 0x80000020")) == 0
    around = code(ADDED, "@P0 BRA 0x30", "UMOV UR7, 0x80000020", product, "EXIT")
    assert wrong_descriptors(around) == 1
    unreached = code("BRA 0x20", ADDED, "UMOV UR7, 0x80000020", product, "EXIT")
    assert wrong_descriptors(unreached) == 0


def test_code_without_products_of_sm_90_has_none():
    assert wrong_descriptors(code("HMMA.16816.F32 R4, R8, R12, R4", "EXIT")) == 0
