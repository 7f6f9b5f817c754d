"""Registers that an instruction reads and writes, against nvdisasm's life ranges of our kernels for sm_90."""

import pytest

from tools.aot.operands import registers


@pytest.mark.parametrize(
    "instruction, reads, writes",
    [
        ("@!P1 LDG.E.128 R20, desc[UR8][R18.64]", [18, 19], [20, 21, 22, 23]),
        ("LDG.E.U16 R39, desc[UR6][R32.64]", [32, 33], [39]),
        ("LDG.E.64 R10, desc[UR6][R10.64+0x8]", [10, 11], [10, 11]),
        ("STG.E.64 desc[UR10][R28.64], R76", [28, 29, 76, 77], []),
        ("LDGSTS.E.BYPASS.128 [R29+0x8000], desc[UR8][R12.64], !P4", [12, 13, 29], []),
        ("LDS.128 R24, [R193+UR4]", [193], [24, 25, 26, 27]),
        ("STS.128 [R16+UR61+0x400], R20", [16, 20, 21, 22, 23], []),
        ("LDSM.16.M88 R7, [R4+UR4]", [4], [7]),
        ("LDSM.16.M88.4 R28, [R172+UR61]", [172], [28, 29, 30, 31]),
        ("STSM.16.M88.4 [R21], R8", [8, 9, 10, 11, 21], []),
        ("ATOMS.ADD RZ, [R11], R4", [4, 11], []),
        ("LDC.64 R4, c[0x0][0x258]", [], [4, 5]),
        ("CS2R R20, SRZ", [], [20, 21]),
        ("IMAD.HI.U32 R18, P1, R13, R23, R18", [13, 18, 19, 23], [18]),
        ("IMAD.WIDE.U32 R18, P0, R12, R25, R18", [12, 18, 19, 25], [18, 19]),
        ("IMAD.WIDE.U32 R2, R13.reuse, 0x2, R2", [2, 3, 13], [2, 3]),
        ("IMAD.X R7, R7, 0x1, R11, P0", [7, 11], [7]),
        ("SHF.L.U64.HI R0, R0, 0x1, R7", [0, 7], [0]),
        ("I2F.U64.RP R21, R14", [14, 15], [21, 22]),  # the one that is over-counted
        ("FADD R174, -R21.reuse, |R153|", [21, 153], [174]),
        ("HADD2.F32 R34, -RZ, R23.reuse.H0_H0", [23], [34]),
        ("FSETP.GEU.AND P2, PT, |R150|, 1.175494350822287508e-38, PT", [150], []),
        ("SHFL.BFLY PT, R17, R6, 0x4, 0x1f", [6], [17]),
        ("VOTE.ANY R50, PT, P6", [], [50]),
        ("P2R R2, PR, RZ, 0x40", [], [2]),
        ("R2UR UR6, R220", [220], []),
        ("REDUX.SUM.S32 UR6, R6", [6], []),
        ("VIADD R29, R203, UR61", [203], [29]),
        ("UIMAD.WIDE UR4, UR6, 0x600, URZ", [], []),
        ("HMMA.16816.F32.BF16 R40, R84, R130, RZ", [84, 85, 86, 87, 130, 131], [40, 41, 42, 43]),
    ],
)
def test_registers(instruction, reads, writes):
    assert registers(instruction) == ({*reads}, {*writes})
