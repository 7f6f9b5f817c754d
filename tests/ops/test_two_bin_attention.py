"""`two_bin_attention`: attention among each sample's large set, then among its small one."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.cases import TwoBinCase, two_bin_arguments


@pytest.mark.parametrize(
    ("backend", "dtype"), [("sdpa", torch.float64), ("triton", torch.float32), ("reference", torch.float64)]
)
@pytest.mark.parametrize("shared", [False, True], ids=["heads", "shared keys"])
def test_it_is_one_attention_for_each_bin(backend, dtype, shared):
    case = TwoBinCase(seed=0, keep=(9, 20), keep_small=(4, 20), dtype=dtype)
    arguments = two_bin_arguments(case)["two_bin_attention"] | {"scale": 0.3}
    if shared:  # one head of key and value for two of query
        arguments |= {name: arguments[name][:, :1] for name in ("key", "value")}
    out = dk.two_bin_attention(**arguments, backend=backend)
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    first = 0
    for counts in ((9, 20), (4, 20)):
        for begin, count in zip((0, 9), counts, strict=True):
            q, k, v = (t[begin : begin + count].transpose(0, 1) for t in (query, key, value))
            expected = (0.3 * q @ k.mT).softmax(-1) @ v
            torch.testing.assert_close(out[first : first + count], expected.transpose(0, 1))
            first += count
    assert first == len(out)


def test_offsets_of_nothing_are_named():
    arguments = two_bin_arguments(TwoBinCase(seed=0))["two_bin_attention"]
    none = dict.fromkeys(("cu_seqlens_large", "cu_seqlens_small"), torch.empty(0, dtype=torch.int32))
    with pytest.raises(ValueError) as caught:
        dk.two_bin_attention(**arguments | none)
    assert str(caught.value) == "two_bin_attention: cu_seqlens_large must hold B+1 values, got none"
