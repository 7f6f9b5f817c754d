"""How machine code is read: instructions by width, resources, names, occupancy."""

import pytest

from tools.aot.disassembly import figures, instructions, matrix_flops, resources
from tools.aot.native import kernel_name
from tools.aot.occupancy import MULTIPROCESSORS, occupancy

CODE = """
        /*03e0*/              @!P0 LDG.E.128 R4, [R8.64] ;
        /*03f0*/                   LDG.E.64.CONSTANT R4, desc[UR4][R8.128] ;
        /*0400*/                   LDG.E R47, [R2.64+0x128] ;
        /*0410*/                   LDG.E.U16.CONSTANT R47, desc[UR6][R2.64] ;
        /*0420*/                   LDG.E.S8 R47, [R2.64] ;
        /*0430*/                   LDG.E.LTC128B.64 R4, [R2.64] ;
        /*0440*/                   LDG.E.ENL2.256 R4, R8, desc[UR4][R2.64] ;
        /*0450*/                   LDGSTS.E.BYPASS.128 [R160+0x4000], [R2.64], !P4 ;
        /*0460*/                   LDGSTS.E.BYPASS.LTC128B.128 [R160+0x4000], desc[UR4][R2.64], P2 ;
        /*0470*/              @!P0 LDGSTS.E.64 [R159+0x6000], [R6.64], !P3 ;
        /*0480*/              @!P0 LDGSTS.E.LTC128B [R159+0x6000], [R6.64], !P3 ;
        /*0490*/                   LDGDEPBAR ;
        /*04a0*/                   UTMALDG.2D [UR8], [UR4] ;
        /*04b0*/                   UBLKCP.S.G [UR8], [UR4], UR6 ;
        /*04c0*/                   STG.E.U16 desc[UR4][R2.64], R5 ;
        /*04d0*/                   STG.E.128 [R2.64], R4 ;
        /*04e0*/                   LDS.128 R4, [R2] ;
        /*04f0*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0500*/                   HMMA.16816.F32.BF16 R44, R84.reuse, R136, RZ ;
        /*0510*/                   HMMA.16816.F32 R44, R84.reuse, R136, RZ ;
        /*0520*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8].tnspA, R24 ;
        /*0530*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
"""


def test_instructions_by_kind_and_width():
    assert instructions(CODE) == {
        "matrix": {"HGMMA.64x128x16": 1, "HMMA.16816": 2},
        "loads": {"1": 1, "16": 1, "2": 1, "32": 1, "4": 1, "8": 2},
        "async": {"16": 2, "4": 1, "8": 1, "bulk": 2},
        "stores": {"16": 1, "2": 1},
    }


def test_spills_are_counted_and_nothing_that_only_looks_like_them():
    used = {"registers": 32, "stack": 0, "local": 0, "shared": 0}
    code = "LDL.LU R4, [R1] ;\n @P0 STL.64 [R1+0x8], R4 ;\n STL [R1], R4 ;\n LDLM R1 ;\n STLX R2 ;"
    assert figures(80, 128, used, code)["spills"] == 3
    assert figures(80, 128, used, CODE)["spills"] == 0


def test_resources():
    line = "REG:80 STACK:48 SHARED:1152 LOCAL:8 CONSTANT[0]:448 TEXTURE:0 SURFACE:0 SAMPLER:0"
    assert resources(line) == {"registers": 80, "stack": 48, "local": 8, "shared": 1152}


def test_matrix_flops():
    """64 x 64 x 16 by one warpgroup is the same work in either instruction."""
    assert matrix_flops({"HGMMA.64x64x16": 1}, 128) == 2 * 64 * 64 * 16
    assert matrix_flops({"HMMA.16816": 8}, 128) == 2 * 64 * 64 * 16
    assert matrix_flops({"HMMA.1688": 1, "HMMA.16816": 1}, 32) == 2 * 16 * 8 * (8 + 16)
    assert matrix_flops({}, 128) == 0


@pytest.mark.parametrize(
    "architecture, threads, registers, shared, expected",
    [
        (80, 256, 32, 0, 1.0),
        (80, 128, 255, 0, 1 / 8),  # two blocks of registers
        (80, 1024, 64, 0, 1 / 2),
        (80, 1024, 65, 0, 0.0),  # too many registers for even one block
        (80, 32, 16, 0, 1 / 2),  # 32 blocks of a warp
        (80, 32, 96, 0, 20 / 64),  # five warps in each quarter, not 21 in all
        (80, 128, 40, 20000, 7 / 16),  # seven blocks of shared memory
        (80, 128, 40, 163 * 1024, 1 / 16),
        (80, 128, 40, 163 * 1024 + 1, 0.0),
        (90, 256, 168, 100000, 1 / 8),
        (90, 384, 100, 0, 12 / 64),
        (100, 128, 40, 227 * 1024, 1 / 16),
    ],
)
def test_occupancy_as_in_nvidias_calculator(architecture, threads, registers, shared, expected):
    assert occupancy(architecture, threads, registers, shared) == expected


def test_the_largest_block_leaves_the_systems_share():
    for limits in MULTIPROCESSORS.values():
        assert limits.shared_per_block == limits.shared - 1024


@pytest.mark.parametrize(
    "signature, expected",
    [
        ("diffratio::cuda::row_map_kernel(diffratio::cuda::PlacesArgs)", ("row_map", "", "")),
        ("void a::b::topk_kernel<16, 1, false>(a::b::TopkArgs)", ("topk", "16, 1, false", "")),
        ("void a::gather_kernel<__nv_bfloat16, true>(a::Args)", ("gather", "true", "bf16")),
        ("void a::put_kernel<__half, (a::b::Rescale)2, true>(a::Args)", ("put", "Rescale 2, true", "fp16")),
        ("void a::sums_kernel<a::Terms<float>, 4>(a::Terms<float>, a::Sums)", ("sums", "Terms, 4", "fp32")),
        ("_ZN1a3fooE(", ("_ZN1a3fooE", "", "")),
    ],
)
def test_names_of_cuda_kernels(signature, expected):
    assert kernel_name(signature) == expected
