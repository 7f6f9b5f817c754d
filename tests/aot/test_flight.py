"""Instructions that touch what a matrix product in flight holds are found, on every path to the wait."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.aot.flight import touched_in_flight

ROOT = Path(__file__).parents[2]
# Accumulators R26 to R33, A in R6 to R9: no multiples of four, so that wide operands can lie half inside.
OPEN = "HGMMA.64x16x16.F32.BF16 R26, R6, gdesc[UR4].tnspB, R26"
PRODUCT = f"{OPEN}, gsb0"
OTHER = "HGMMA.64x16x16.F32.BF16 R42, gdesc[UR4], R42, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"
WAIT_FOR_ALL_BUT_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
TOUCH = "FADD R0, R1, R26"
TOUCH_OTHER = "FADD R0, R1, R42"


def touched(*instructions: str) -> int:
    """What is found in a kernel of these instructions, at addresses 0x0, 0x10, 0x20 and so on."""
    lines = (f"        /*{16 * i:04x}*/   {text} ;   /* 0x0 */" for i, text in enumerate(instructions))
    return touched_in_flight("\n".join(lines))


def before_and_after_the_wait(instruction: str) -> tuple[int, int]:
    return touched(PRODUCT, instruction, WAIT, "EXIT"), touched(PRODUCT, WAIT, instruction, "EXIT")


@pytest.mark.parametrize(
    "instruction",
    [
        TOUCH,
        "@!P0 FADD R33, |R0|, -R1",
        "MOV R0, R30.reuse",
        "R2UR UR4, R26",
        "MUFU.EX2 R27, R0",
        "F2FP.BF16.F32.PACK_AB R0, R1, R30",
        "SHFL.BFLY PT, R0, R33, 0x1, 0x1f",
        "ISETP.GT.AND P0, PT, R0, R28, PT",
        "STG.E.128 desc[UR16][R0.64], R24",
        "STS.64 [R0+UR4+0x10], R25",
        "LDS.128 R24, [R0]",
        "LDG.E R0, desc[UR16][R25.64+0x10]",
        "LDS R0, [R26+UR4]",
        "LDSM.16.M88.4 R24, [R0]",
        "CS2R R25, SRZ",
        "IMAD.WIDE R25, R0, R1, R2",
        "IMAD.WIDE R0, R2, R3, R25",
        "HMMA.16816.F32 R12, R16, R25, R12",
        "HGMMA.64x16x16.F32 R42, R24, gdesc[UR4].tnspB, R42",
        "HGMMA.64x16x16.F32 R20, gdesc[UR4], RZ, !UPT",
        "HGMMA.64x8x16.F32 R26, gdesc[UR4], R26",  # accumulators of another shape
    ],
)
def test_an_accumulator_in_flight_is_neither_read_nor_written(instruction):
    assert before_and_after_the_wait(instruction) == (1, 0)


@pytest.mark.parametrize(
    "instruction",
    [
        "MOV R6, R0",
        "@P0 FADD R9, R0, R1",
        "SHFL.BFLY PT, R6, R0, 0x1, 0x1f",
        "LOP3.LUT P0, R7, R0, 0x1, RZ, 0xc0, !PT",
        "LDS.128 R4, [R0]",
        "LDSM.16.MT88.2 R5, [R0]",
        "HGMMA.64x16x16.F32 R2, gdesc[UR4], R2",
    ],
)
def test_a_register_of_a_in_flight_is_not_written(instruction):
    assert before_and_after_the_wait(instruction) == (1, 0)


@pytest.mark.parametrize(
    "instruction",
    [
        "FADD R0, R6, R7",
        "ISETP.GT.AND P0, PT, R6, R0, PT",
        "STS.128 [R8], R6",
        "R2UR UR6, R6",
        "LDSM.16.M88.2 R4, [R0]",
        "LDS.64 R24, [R0]",
        "CS2R.32 R25, SRZ",
        "IMAD.WIDE R0, R25, R1, R2",
        "UMOV UR26, UR6",
        "LDG.E R0, desc[UR26][R34.64]",
        "@!PT LDS RZ, [RZ]",
        PRODUCT,  # adds to the same accumulators, behind the first
        "HGMMA.64x16x16.F32 R42, R6, gdesc[UR4].tnspB, R42",
    ],
)
def test_what_may_be_done_in_flight(instruction):
    assert touched(PRODUCT, instruction, WAIT, "EXIT") == 0


def test_a_wait_releases_the_oldest_groups():
    both = OPEN, PRODUCT, OTHER
    assert touched(*both, WAIT_FOR_ALL_BUT_ONE, TOUCH, WAIT, "EXIT") == 0
    assert touched(*both, WAIT_FOR_ALL_BUT_ONE, TOUCH_OTHER, WAIT, "EXIT") == 1
    assert touched(*both, PRODUCT, WAIT_FOR_ALL_BUT_ONE, TOUCH, TOUCH_OTHER, WAIT, "EXIT") == 1
    assert touched(*both, WAIT, TOUCH, TOUCH_OTHER, "EXIT") == 0


def test_a_wait_covers_committed_groups_only_and_only_where_it_runs():
    assert touched(OPEN, WAIT, TOUCH, "EXIT") == 1
    assert touched(OPEN, OTHER, WAIT, TOUCH, "EXIT") == 0
    assert touched(PRODUCT, f"@P0 {WAIT}", TOUCH, "EXIT") == 1
    assert touched(PRODUCT, "DEPBAR.LE SB0, 0x0", TOUCH, "EXIT") == 1


def test_a_loop_carries_a_product_over_its_back_edge():
    assert touched(TOUCH, PRODUCT, "@P0 BRA 0x0", WAIT, "EXIT") == 1
    assert touched(WAIT, TOUCH, PRODUCT, "@P0 BRA 0x0", WAIT, "EXIT") == 0
    assert touched(TOUCH, PRODUCT, WAIT, "@P0 BRA 0x0", "EXIT") == 0
    # The wait leaves the newest group: that of the round before is released, that of this round is not.
    both = PRODUCT, OTHER, WAIT_FOR_ALL_BUT_ONE, TOUCH, TOUCH_OTHER
    assert touched(*both, "@P0 BRA 0x0", WAIT, "EXIT") == 1


@pytest.mark.parametrize("branch", ["@P0 BRA", "@!UP0 BRA", "BRA P0,", "BRA.U !UP0,", "BRA.DIV UR5,"])
def test_a_branch_around_the_wait(branch):
    assert touched(PRODUCT, f"{branch} 0x30", WAIT, TOUCH, "EXIT") == 1
    assert touched(PRODUCT, f"{branch} 0x40", WAIT, TOUCH, "EXIT") == 0


def test_the_younger_of_two_paths_counts():
    """One commits a second group, which the wait leaves in flight instead of the first."""
    code = PRODUCT, "@P0 BRA 0x30", OTHER, WAIT_FOR_ALL_BUT_ONE, TOUCH, WAIT, "EXIT"
    assert touched(*code) == 1
    assert touched(*code[:1], "NOP", *code[2:]) == 0


def test_only_what_is_reached_counts():
    assert touched(PRODUCT, "BRA 0x30", TOUCH, WAIT, "EXIT") == 0
    assert touched(PRODUCT, "EXIT", TOUCH, WAIT, "EXIT") == 0
    assert touched(PRODUCT, "@P0 EXIT", TOUCH, WAIT, "EXIT") == 1


def test_waiting_for_other_threads_changes_nothing():
    around = "BSSY B0, 0x50", "@P0 BRA 0x40", WAIT, "BSYNC B0", TOUCH, "EXIT"
    assert touched(PRODUCT, *around) == 1
    assert touched(PRODUCT, around[0], "WARPSYNC 0xffffffff", *around[2:]) == 0


def test_calls_return_to_where_they_came_from():
    function = TOUCH_OTHER, "RET.REL.NODEC R2 0x0"
    calls = "CALL.REL.NOINC 0x60", PRODUCT, "CALL.REL.NOINC 0x60", WAIT
    assert touched(*calls, TOUCH, "EXIT", *function) == 0  # back from the second call it is not in flight
    assert touched(TOUCH, *calls, "EXIT", *function) == 0
    assert touched(OTHER, "CALL.REL.NOINC 0x60", WAIT, "CALL.REL.NOINC 0x60", "EXIT", "NOP", *function) == 1
    assert touched(PRODUCT, "CALL.REL.NOINC 0x40", TOUCH, "EXIT", WAIT, "RET.REL.NODEC R2 0x0") == 0


@pytest.mark.parametrize("jump", ["BRX R2 -0x1230", "BRXU UR4 -0x10", "JMX R2", "CALL.ABS.NOINC R2"])
def test_what_cannot_be_followed_is_said(jump):
    with pytest.raises(ValueError, match="computed address"):
        touched(PRODUCT, jump, WAIT, "EXIT")


PRINT_CODE = """
from tools.aot import compile, shipped
shipped.HEADS = {64: 24}
job = shipped.jobs((90,), "attention_fwd")[0]
compile.figures = lambda *found: print(found[-1]) or {"matrix": {}}
compile.compile_kernel(job.spec, job.architecture)
"""


def test_a_real_kernel_with_one_register_changed():
    """The PTX of this attention moves accumulators in flight, its machine code does not.

    Each step of another kind between a product and the next wait gets an accumulator of that product for an
    operand.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PRINT_CODE]
    code = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert touched_in_flight(code) == 0
    places, first = [], None
    for line in re.finditer("^.*$", code, re.MULTILINE):
        if product := re.search(r"HGMMA\S+ (R\d+)", line[0]):
            first = product[1]
        elif "WARPGROUP.DEPBAR" in line[0]:
            first = None
        elif first and (step := re.search(r"(?:FADD|FFMA|IMAD\S*|VIADD|SHFL\S* PT,) R\d+, (R\d+)", line[0])):
            places.append((line.start() + step.start(1), line.start() + step.end(1), first))
    assert len(places) > 5
    for start, end, register in places:
        assert touched_in_flight(code[:start] + register + code[end:]) == 1
