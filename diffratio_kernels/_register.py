"""How an operator of `torch.ops.diffratio` is put together: schema, kernel, fake, autograd, autocast."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._backends import OWN, choose

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
    """The backward of an autograd.Function, from which second derivatives are an error that names `ctx.name`.

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
        tied = iter(_NoSecondOrder.apply(ctx.name, wanted, *(g for g in grads if g is not None)))
        return tuple(None if g is None else next(tied) for g in grads)

    return first_order_backward


def register(
    schema: str,
    kernel: Callable,
    fake: Callable,
    differentiable: Callable | None = None,
    autocast: Callable | None = None,
    steps: Callable | None = None,
) -> Callable:
    """Register `diffratio::<schema>`.

    Args:
        schema: name, arguments and results, as torch.library writes them.
        kernel: computes, below autograd.
        fake: shapes and dtypes of the results only.
        differentiable: the same computation in differentiable steps, taken when a gradient is wanted.
        autocast: taken while autocast is on.
        steps: gives `differentiable` and its arguments for those of a call.

    Returns:
        The operator.
    """
    name = schema[: schema.index("(")]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.diffratio, name).default
    torch.library.register_fake(f"diffratio::{name}", fake, lib=_library)
    if differentiable or steps:
        for device in _SPARSE:  # the checks of a public operator name the argument, the dispatcher would not
            _library.impl(name, kernel, device)
        for device in (*_DEVICES, "Meta"):
            _library.impl(name, _autograd_kernel(op, differentiable, steps), f"Autograd{device}")
    for device in _DEVICES:
        _library.impl(name, kernel, device)
        if autocast is not None:
            _library.impl(name, autocast, f"Autocast{device}")
    return op


def _autograd_kernel(op: Callable, differentiable: Callable | None, steps: Callable | None) -> Callable:
    def tensors(args, kwargs) -> list[Tensor]:
        return [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]

    def autograd_kernel(*args, **kwargs):
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(t).tangent is not None for t in tensors(args, kwargs)
        ):
            raise NotImplementedError(f"{op}: forward-mode derivatives are not implemented")
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors(args, kwargs))
        if wanted and steps is not None:
            function, arguments = steps(*args, **kwargs)
            return function(*arguments)
        if wanted:
            return differentiable(*args, **kwargs)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args, **kwargs)

    return autograd_kernel


def unwatched() -> bool:
    """Whether nobody looks at operators: no gradient, autocast, mode, transform, profiler or compiler."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )


_SCALARS = frozenset((int, float, str, bool, type(None)))
_PLAIN = (Tensor, torch.nn.Parameter)


def signature(values: Iterable) -> tuple | None:
    """What the checks of a call look at besides values, and what the dispatcher does; None where that is more
    than plain tensors and constants tell."""
    parts = []
    for value in values:
        kind = type(value)
        if kind in _SCALARS:
            parts += kind, value
        elif kind in _PLAIN:
            parts += value.shape, value.dtype, value.device, value.layout, value.is_neg()
        elif kind is list and all(type(number) is int for number in value):
            parts += len(value), *value
        else:
            return None
    return tuple(parts)


def _alike(value: object) -> bool:
    """Whether calls with tensors of one signature are alike: no values of theirs are checked, as integers on
    the CPU are, and the dispatcher calls the kernel with no step before it."""
    if not isinstance(value, Tensor):
        return True
    unread = value.is_cuda or (value.is_cpu and value.is_floating_point())
    return unread and value.layout is torch.strided and not value.is_neg()


class Shortcut:
    """An operator from Python. Where nobody looks, calls like one that went through the dispatcher and all
    checks before go straight to the kernel."""

    ROOM = 4096
    """Signatures that are kept; then all are forgotten."""

    def __init__(self, op: Callable, kernel: Callable):
        """kernel: as the operator's, without checks."""
        self.op, self.kernel = op, kernel
        self.passed: set[tuple] = set()

    def __call__(self, *args, **kwargs):
        seen = signature((*args, *kwargs, *kwargs.values())) if unwatched() else None
        if seen is None:
            return self.op(*args, **kwargs)
        if seen in self.passed:
            return self.kernel(*args, **kwargs)
        out = self.op(*args, **kwargs)
        if all(map(_alike, (*args, *kwargs.values()))):
            if len(self.passed) >= self.ROOM:
                self.passed.clear()
            self.passed.add(seen)
        return out


def like_first(first: Tensor, *_) -> Tensor:
    """The fake of an operator whose result is as its first argument."""
    return first.new_empty(first.shape)


def empty_gradients(*exact: Tensor, wide: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """Gradients as large as tensors: `exact` in their dtype, `wide` in the one that kernels add up in."""
    dtype = torch.promote_types(exact[0].dtype, torch.float32)
    return *(t.new_empty(t.shape) for t in exact), *(t.new_empty(t.shape, dtype=dtype) for t in wide)


@dataclass
class Operator:
    """`diffratio::<schema>`, computed by one of several backends: making it registers it.

    The schema ends in `str backend`. The functions get its other arguments, all of them, in its order.
    """

    schema: str
    check: Callable
    """Raises where an argument is bad."""
    launcher: Callable
    """A backend, arguments -> the function that computes the results, and its arguments."""
    fake: Callable
    """Arguments -> empty results."""
    gradients: Callable
    """A backend, what was kept, gradients of the results -> those of arguments, by name."""
    kept: tuple[str, ...] | None = None
    """Arguments to keep for `gradients`; None keeps all."""
    train: Callable | None = None
    """A backend, arguments -> results, and tensors and other values to keep for `gradients`; None calls this
    operator and keeps the arguments `kept`."""
    chosen: Callable | None = None
    """What was asked for, arguments, `gradient=` -> the backend; None is `choose` by the first argument."""
    cast: tuple[str, ...] = ()
    """Arguments that autocast casts to its dtype or, with `cast_like`, to that of another argument."""
    cast_like: str | None = None

    def __post_init__(self):
        autocast = self._autocast if self.cast else None
        self.op = register(self.schema, self._kernel, self._fake, autocast=autocast, steps=self._steps)
        self.defaults = {one.name: one.default_value for one in self.op._schema.arguments}
        *self.names, _ = self.defaults

    def _arguments(self, args: tuple, kwargs: dict) -> list:
        """All arguments of a call, the backend last: the dispatcher leaves out defaults."""
        rest = list(self.defaults)[len(args) :]
        return [*args, *(kwargs.get(name, self.defaults[name]) for name in rest)]

    def _chosen(self, backend: str, *arguments, gradient: bool) -> str:
        if self.chosen is not None:
            return self.chosen(backend, *arguments, gradient=gradient)
        first = arguments[0]
        return choose(self.op._schema.name.removeprefix("diffratio::"), backend, first.device, first.dtype)

    def _kernel(self, *args, **kwargs):
        *arguments, backend = self._arguments(args, kwargs)
        self.check(*arguments)
        backend = self._chosen(backend, *arguments, gradient=False)
        function, arguments = self.launcher(backend, *arguments)
        return function(*arguments)

    def _steps(self, *args, **kwargs) -> tuple[Callable, tuple]:
        *arguments, backend = self._arguments(args, kwargs)
        self.check(*arguments)
        backend = self._chosen(backend, *arguments, gradient=True)
        if backend in OWN:
            if torch._C._are_functorch_transforms_active():
                name = self.op.name()
                raise NotImplementedError(f"{name}: torch.func has no gradients of backend {backend!r}")
            return _ByKernels.apply, (self, backend, *arguments)
        return self.launcher(backend, *arguments)

    def _fake(self, *args, **kwargs):
        *arguments, _ = self._arguments(args, kwargs)
        self.check(*arguments)
        return self.fake(*arguments)

    def _autocast(self, first: Tensor, *args, **kwargs):
        *arguments, backend = self._arguments((first, *args), kwargs)
        named, device = dict(zip(self.names, arguments, strict=True)), first.device.type
        dtype = named[self.cast_like].dtype if self.cast_like else torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            cast = {name: named[name].to(dtype) for name in self.cast if named[name] is not None}
            return self.op(**named | cast, backend=backend)


class _ByKernels(torch.autograd.Function):
    """An operator by kernels of this package, whose gradients come from another operator."""

    @staticmethod
    def forward(ctx, operator: Operator, backend, *arguments):
        if operator.train is not None:
            results, kept = operator.train(backend, *arguments)
        else:
            named = dict(zip(operator.names, arguments, strict=True))
            results = operator.op(**named, backend=backend)
            kept = [named[name] for name in operator.kept or operator.names]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in kept))
        ctx.others = [None if isinstance(value, Tensor) else value for value in kept]
        ctx.operator, ctx.backend, ctx.name = operator, backend, operator.op.name()
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        found = {}
        if any(grad is not None for grad in grads):
            tensors = ctx.saved_tensors  # once: checkpointing hands them out only once
            kept = [other if t is None else t for t, other in zip(tensors, ctx.others, strict=True)]
            found = ctx.operator.gradients(ctx.backend, kept, *grads)
        return None, None, *(found.get(name) for name in ctx.operator.names)
