"""Figures of the loop with the matrix products, from machine code."""

from tools.aot.loop import figures_of_loop

PRODUCT, WAIT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def figures(*instructions: str) -> dict[str, int]:
    """Of a kernel of these instructions, at addresses 0x0, 0x10, 0x20 and so on."""
    lines = (f"        /*{16 * i:04x}*/   {text} ;   /* 0x0 */" for i, text in enumerate(instructions))
    return figures_of_loop("\n".join(lines))


def test_a_step_jumps_over_what_it_can():
    """Three instructions lie behind a jump, one behind a second way around."""
    code = (
        "NOP",
        PRODUCT,
        "@!P2 BRA 0x60",
        "NOP",
        "NOP",
        "NOP",
        WAIT,
        "BRA 0x90",
        "NOP",
        "@P0 BRA 0x10",
        "EXIT",
    )
    assert figures(*code)["step"] == 5


def test_copies_that_no_wait_waits_for_are_in_flight():
    copies = [f"DEPBAR.LE SB0, {groups}" for groups in ("0x6", "0x4")]
    assert figures("DEPBAR.LE SB0, 0x0", *copies, PRODUCT, "@P0 BRA 0x10")["in_flight"] == 4
    assert figures(PRODUCT, "@P0 BRA 0x0", "DEPBAR.LE SB0, 0x4")["in_flight"] == 0


def test_products_that_wait_for_each_other():
    assert figures(*[PRODUCT, "NOP", WAIT] * 3, "@P0 BRA 0x0")["waited_alone"] == 3
    assert figures(*[PRODUCT, PRODUCT, WAIT] * 3, "@P0 BRA 0x0")["waited_alone"] == 0


def test_the_loop_with_the_most_products_counts():
    code = (PRODUCT, "@P0 BRA 0x0", "NOP", PRODUCT, PRODUCT, "@P0 BRA 0x20", "EXIT")
    assert figures(*code)["step"] == 4
