"""The instruction sets that the native row kernels ship."""

import pytest

from diffratio_kernels import _native
from tools.checks.instruction_sets import instruction_set


@pytest.fixture(params=_native.INSTRUCTION_SETS)
def every_instruction_set(request):
    """The row kernels run on each instruction set that ships and that this processor has."""
    if request.param not in _native.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    with instruction_set(request.param):
        yield request.param
