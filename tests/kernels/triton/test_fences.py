"""No kernel reads or writes outside of a tensor: each lies beside a page that nobody may touch."""

from unittest import mock

import pytest
import torch

from tools.guards.fence import fenced, survives
from tools.guards.interpreter import interpreted
from tools.launchers.calls import VARIANTS, typical_call
from tools.launchers.check import same_bits

pytestmark = pytest.mark.skipif(
    not interpreted(),
    reason="fences stop interpreted kernels: a GPU or the executor of PTX has its own memory checks",
)


@pytest.mark.parametrize("kind", VARIANTS)
def test_launchers_stay_inside_of_their_tensors(kind, dtype):
    operator, arguments = typical_call(kind, dtype)
    expected = operator.kernels(**arguments)
    empty, empty_like = torch.empty, torch.empty_like

    def run(side):
        beside = {key: fenced(t, side) if isinstance(t, torch.Tensor) else t for key, t in arguments.items()}
        with (
            mock.patch.object(torch, "empty", lambda *a, **k: fenced(empty(*a, **k), side)),
            mock.patch.object(torch, "empty_like", lambda *a, **k: fenced(empty_like(*a, **k), side)),
        ):
            actual = operator.kernels(**beside)
        for key, result in expected.items():
            assert same_bits(actual[key], result), key

    for side in ("start", "end"):
        assert survives(run, side), side
