"""How an operator of `torch.ops.diffratio` is put together: schema, kernel, fake, autograd, autocast."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor
from torch.autograd import forward_ad

_library = torch.library.Library("diffratio", "DEF")
_DEVICES = ("CPU", "CUDA")
_SPARSE = tuple(f"{layout}{device}" for layout in ("Sparse", "SparseCsr") for device in _DEVICES)


class _NoSecondOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, name, wanted, *grads):
        ctx.name = name
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(f"{ctx.name}: only first derivatives are implemented")


def first_order(backward: Callable) -> Callable:
    """The backward of an autograd.Function, from which second derivatives are an error.

    Unlike torch's once_differentiable also where the incoming gradient is a constant: what was saved is none.
    """

    @wraps(backward)
    def first_order_backward(ctx, *grads_out):
        with torch.no_grad():
            grads = backward(ctx, *grads_out)
        if not torch.is_grad_enabled():
            return grads
        grads = grads if isinstance(grads, tuple) else (grads,)
        wanted = torch.zeros((), requires_grad=True)
        name = type(ctx).__name__.removeprefix("_").removesuffix("Backward")
        tied = iter(_NoSecondOrder.apply(name, wanted, *(g for g in grads if g is not None)))
        return tuple(None if g is None else next(tied) for g in grads)

    return first_order_backward


def register(
    schema: str,
    kernel: Callable,
    fake: Callable,
    differentiable: Callable | None = None,
    autocast: Callable | None = None,
) -> Callable:
    """Register `diffratio::<schema>`.

    Args:
        schema: name, arguments and results, as torch.library writes them.
        kernel: computes, below autograd.
        fake: shapes and dtypes of the results only.
        differentiable: the same computation in differentiable steps, taken when a gradient is wanted.
        autocast: taken while autocast is on.

    Returns:
        The operator.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.diffratio, name).default
    torch.library.register_fake(f"diffratio::{name}", fake, lib=_library)
    if differentiable is not None:
        for device in _SPARSE:  # the checks of a public operator name the argument, the dispatcher would not
            _library.impl(name, kernel, device)
        for device in (*_DEVICES, "Meta"):
            _library.impl(name, _autograd_kernel(op, differentiable), f"Autograd{device}")
    for device in _DEVICES:
        _library.impl(name, kernel, device)
        if autocast is not None:
            _library.impl(name, autocast, f"Autocast{device}")
    return op


def _autograd_kernel(op: Callable, differentiable: Callable) -> Callable:
    def autograd_kernel(*args, **kwargs):
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(t).tangent is not None for t in tensors
        ):
            raise NotImplementedError(f"{op}: forward-mode derivatives are not implemented")
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if wanted:
            return differentiable(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return autograd_kernel
