"""Launchers run on the GPU where there is one, else in the interpreter, whose bf16 is wrong."""

import pytest

from diffratio_kernels.testing.triton_calls import kernel_device, working_dtypes


@pytest.fixture(scope="session")
def device():
    return kernel_device()


@pytest.fixture(params=working_dtypes(kernel_device()), ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param
