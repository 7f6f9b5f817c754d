"""The simulator's 16-bit types convert exactly as torch's do."""

import pytest
import torch

TYPES = {"bfloat16": torch.bfloat16, "half": torch.float16}


def every_pattern() -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16)


@pytest.mark.parametrize("name", TYPES)
def test_all_patterns_widen(controls, name):
    patterns = every_pattern()
    wide = torch.tensor(controls.from_bits((patterns.int() & 0xFFFF).tolist(), name == "half"))
    expected = patterns.view(TYPES[name]).float()
    assert torch.equal(wide.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(wide[number].view(torch.int32), expected[number].view(torch.int32))


def hard_to_round(dtype: torch.dtype) -> torch.Tensor:
    """Every value of the type, the midpoints between neighbours, their fp32 neighbours, and random bits."""
    values = every_pattern().view(dtype).float()
    values = values[values.isfinite()].sort().values
    middle = ((values[1:].double() + values[:-1].double()) / 2).float()
    exact = torch.cat([values, middle])
    infinity = torch.tensor(float("inf"))
    near = [exact, exact.nextafter(infinity), exact.nextafter(-infinity)]
    bits = torch.randint(-(2**31), 2**31, (2**18,)).to(torch.int32).view(torch.float32)
    special = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65519.9, 65520.0, 3.4e38, 1e-45]
    )
    return torch.cat([*near, bits, special])


@pytest.mark.parametrize("name", TYPES)
def test_rounding(controls, name):
    values = hard_to_round(TYPES[name])
    values = torch.cat([values, values.new_zeros(-len(values) % 256)])
    bits = torch.tensor(controls.to_bits(values.tolist(), name == "half"), dtype=torch.int32)
    expected = values.to(TYPES[name])
    number = ~expected.isnan()
    assert torch.equal(bits[number], expected.view(torch.int16).int()[number] & 0xFFFF)
    assert set(bits[~number].tolist()) == {0x7FFF}, "the NaN of the GPU's conversions"
