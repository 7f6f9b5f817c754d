"""Launchers run on the GPU where there is one, else in the interpreter, whose bf16 is wrong."""

import pytest
import torch

from tools.launchers.calls import kernel_device, working_dtypes

PLACES = ("test_fences.py", "test_layouts.py", "test_same_bits.py", "test_untouched_rows.py")
"""They ask which memory is read and written, and when; the dtype decides little: fp16 is in `make fuzz`."""


def pytest_itemcollected(item):
    dtype = getattr(item, "callspec", None) and item.callspec.params.get("dtype")
    if item.path.name in PLACES and dtype == torch.float16 and kernel_device() == "cpu":
        item.add_marker(pytest.mark.fuzz)


@pytest.fixture(scope="session")
def device():
    return kernel_device()


@pytest.fixture(params=working_dtypes(kernel_device()), ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param
