"""Blocks as one graph, and nothing that the host would wait for: on a GPU a block reads no value."""

from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.families import text_mask
from diffratio.families.references import read_once, target_tokens
from diffratio.routing import forward as routed_forward
from diffratio_kernels import _checks
from diffratio_kernels.ops.attention import sdpa
from diffratio_kernels.ops.qk_norm_rope import op as heads_op
from diffratio_kernels.ops.route import cpu as cpu_route
from diffratio_kernels.ops.route import op as route_op
from diffratio_kernels.ops.route.cu_seqlens import copied_cu_seqlens

from .cases import BLOCKS
from .cases.case import Holder
from .test_blocks import assert_same, made, routed, run

QUICK = (
    "flux_kontext_single", "z_image_ragged", "qwen_image_masked", "wan_ti2v", "flux2_single_split",
    "sd3_joint",
)  # fmt: skip
"""Two streams and one, ragged, masked, references, modulation by token. Others are behind `make fuzz`."""
NOT_DENSE = ("hidream", "hidream_single")
"""Whose own forward reads values: how many tokens go to which expert."""
pytestmark = pytest.mark.filterwarnings("ignore:the routers are untrained")


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def cases(names, quick):
    marks = {False: pytest.mark.fuzz, True: ()}
    return [pytest.param(name, marks=marks[name in quick]) for name in names]


@pytest.mark.parametrize("name", cases([name for name in BLOCKS if name not in NOT_DENSE], QUICK))
def test_a_block_is_one_graph(name):
    case = made(name)
    model = routed(case)
    with torch.no_grad():
        wanted = run(case, model)
        case.block.compile(fullgraph=True, backend="eager")
        assert_same(case, run(case, model), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", cases(("flux_double", "flux_single", "z_image", "wan"), ("flux_single",)))
def test_a_block_in_training_is_one_graph_with_its_backward(name):
    case = made(name)
    model = routed(case)
    x = case.inputs[case.tokens].requires_grad_()
    grads = []
    for _ in range(2):
        image, _ = run(case, model)
        grads.append(torch.autograd.grad(torch.stack(list(image)).square().sum(), x)[0])
        case.block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grads[1], grads[0], atol=1e-5, rtol=1e-4)


class NoReads(TorchDispatchMode):
    """What a captured stream does not allow: a read by the host, a shape of values, a copy of a list."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "lift_fresh")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and func.__name__.partition(".")[0] in self.READS:
            raise RuntimeError(f"{func} reads")
        return func(*args, **(kwargs or {}))


class NoCalls(TorchFunctionMode):
    """Of what Python asks for, where no mode looks at operators: kernels are launched as they are."""

    READS = ("item", "tolist", "__bool__", "__int__", "__index__", "nonzero", "masked_select", "unique")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in self.READS:
            raise RuntimeError(f"{func.__name__} reads")
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu():
    """What a GPU does in the place of what reads values where that costs nothing, on a CPU."""

    def unreadable(*_):
        raise RuntimeError("a list of values")

    with ExitStack() as stack:
        for owner, name, instead in (
            (text_mask, "capturing", lambda: True),
            (sdpa, "_per_run", sdpa._padded),
            (cpu_route, "cu_seqlens_of", copied_cu_seqlens),
            (routed_forward, "_fit", lambda *_: True),
            (torch.Tensor, "tolist", unreadable),
            *((module, "readable", lambda *_: False) for module in (_checks, route_op, heads_op)),
        ):
            stack.enter_context(mock.patch.object(owner, name, instead))
        yield


READS = (*NOT_DENSE, "nucleus_experts")
"""Blocks that cannot do without: experts of diffusers."""


@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in READS])
def test_nothing_of_a_block_is_read(name):
    """The first call may copy kept counts to the device; what the model's call reads is its own."""
    case = made(name)
    model = apply_diffratio(Holder(case.block, **case.model), DiffRatioConfig(compression=0.5))
    forward = case.block.forward

    def guarded(guard, *args, **kwargs):
        with as_on_a_gpu(), guard:
            return forward(*args, **kwargs)

    with torch.no_grad():
        wanted = run(case, model)
        for guard in (NoCalls(), NoReads()):
            case.block.forward = partial(guarded, guard)
            assert_same(case, run(case, model), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("guard", [NoCalls, NoReads])
def test_a_read_is_seen(guard):
    with as_on_a_gpu(), guard():
        for read in (
            lambda x: x.sum().item(),
            torch.nonzero,
            torch.Tensor.tolist,
            *((lambda x: torch.tensor([1]),) if guard is NoReads else (bool, int)),
        ):
            with pytest.raises(RuntimeError, match="reads|values"):
                read(torch.ones(1))


def test_references_of_a_whole_compiled_model_are_an_error_that_names_them():
    """A graph for any ids: it is given references later."""
    count = torch.compile(lambda ids: (ids.sum(), target_tokens(ids)), fullgraph=True, backend="aot_eager")
    ids = torch.zeros(12, 3)
    assert count(ids)[1] is None
    ids[8:, 0] = 1
    with pytest.raises(
        RuntimeError, match="img_ids: there are tokens of reference images.*compile its blocks"
    ):
        count(ids)
    assert target_tokens(ids) == 8


def test_what_a_whole_compiled_model_would_have_to_read_is_an_error_with_the_reason():
    read = torch.compile(lambda x: read_once("sum", float, x.sum()), fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile the blocks, not the model"):
        read(torch.ones(1))
