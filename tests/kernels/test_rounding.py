"""One rounding at the store, to the nearest and ties to even; a NaN stays a NaN."""

import pytest
import torch

from diffratio_kernels.ops.scatter_rescale import cpu
from diffratio_kernels.types import Finish, PackedRows, Rescale

pytestmark = pytest.mark.usefixtures("every_instruction_set")
BF16, FP16 = torch.bfloat16, torch.float16


def every_value(dtype):
    """All 65536 bit patterns of a 16-bit float as rows [256, 256]."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(256, 256)


def stored_sum(a, b, gate=1.0):
    """a + gate * b through the kernel that finishes rows: an fp32 sum and one store."""
    gates = torch.full((1, a.shape[1]), gate) if isinstance(gate, float) else gate
    rows, logits = PackedRows(torch.arange(a.shape[0]), a.shape[0]), torch.zeros(1, a.shape[0])
    given = Finish(torch.zeros_like(a)[None], rows, a, b, gates, logits, Rescale("none"))
    return cpu.scatter_rescale(given)[0]


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("shift", [-9, -8, -1, 1], ids=lambda s: f"2^{s}")
def test_a_sum_of_two_values_is_rounded_once_to_the_nearest(dtype, shift):
    """x + 2^shift y: exact in fp32, and with y = x (and x = 1 + ulp) full of ties at bfloat16's 8 bits."""
    a = every_value(dtype)
    for b in (a, a.flip(1), a.roll(1, 0)):
        expected = (a.float() + 2.0**shift * b.float()).to(dtype)
        actual = stored_sum(a, b, 2.0**shift)
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.nan_to_num(7), expected.nan_to_num(7))


def test_ties_go_to_the_even_neighbour():
    """1 + half an ulp lies between 1 (even) and 1 + ulp (odd); 1 + ulp + half an ulp goes up."""
    for dtype in (BF16, FP16):
        ulp = torch.finfo(dtype).eps
        a = torch.tensor([[1.0, 1 + ulp, -1.0, 1.0]], dtype=dtype)
        half = torch.tensor([[ulp / 2, ulp / 2, -ulp / 2, ulp / 2 * (1 + ulp)]], dtype=dtype)
        assert stored_sum(a, half).tolist() == [[1.0, 1 + 2 * ulp, -1.0, 1 + ulp]]


@pytest.mark.parametrize("dtype", [BF16, FP16, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001], ids=hex)
def test_a_nan_of_any_payload_stays_a_nan(dtype, bits):
    gate = torch.tensor([[bits] * 4], dtype=torch.int32).view(torch.float32)
    assert stored_sum(torch.ones(3, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype), gate).isnan().all()
