"""Guards around kernels that Triton's interpreter runs on the CPU (Triton 3.6 to 3.9).

The interpreter is chosen by TRITON_INTERPRET=1 before Triton is imported; then every kernel of the process is
interpreted. Its arithmetic is right in fp32 and fp16 and wrong in bf16.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from .poison import poisoned_memory

_rewritten: dict = {}
"""Kernel -> its body with loops that count in tensors, kept beside Triton's own table of bodies."""


BINARY = {"add": "add", "sub": "subtract", "mul": "multiply"}
"""What the interpreter calls an operation -> what numpy calls it."""


def interpreted() -> bool:
    """Whether kernels of this process are interpreted."""
    import triton.language
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(triton.language.sum, InterpretedFunction)


def loaded_interpreter():
    """Triton's module of the interpreter, where kernels of this process are interpreted."""
    if not interpreted():
        raise RuntimeError("kernels are compiled here: set TRITON_INTERPRET=1 before Triton is imported")
    from triton.runtime import interpreter

    return interpreter


@contextmanager
def overflow_trap():
    """Inside, integer arithmetic of a kernel that leaves its type raises triton's InterpreterError.

    Add, subtract, multiply, sums and cumulative sums and products of all integers narrower than 64 bits.
    Not: `sanitize_overflow=False`, shifts, and conversions, which may cut on purpose.
    """
    interpreter = loaded_interpreter()
    np, builder = interpreter.np, interpreter.interpreter_builder
    semantic, reductions = type(interpreter.interpreter_semantic), interpreter.ReduceScanOpInterface
    plain = reductions.to_tensor

    def binary_op(self, lhs, rhs, operation):
        # Triton's own check is made in the kernel's language, of many interpreted operations.
        dtype = lhs.type.scalar
        if dtype.int_bitwidth < 64:
            wide = (side.handle.data.astype(np.int64) for side in (lhs, rhs))
            result = getattr(np, BINARY[operation.__name__])(*wide)
            within = dtype.get_int_min_value() <= result.min() and result.max() <= dtype.get_int_max_value()
            assert within, f"{dtype} overflow detected for operation {operation.__name__}"

    def to_tensor(self, value, dtype):
        # numpy reduces in 64 bits and only then casts to the type of the kernel.
        if dtype.is_int() and hasattr(value, "max"):
            low, high = dtype.get_int_min_value(), dtype.get_int_max_value()
            assert low <= value.min() and value.max() <= high, f"{dtype} overflow detected in a reduction"
        return plain(self, value, dtype)

    with (
        mock.patch.object(builder, "options", dataclasses.replace(builder.options, debug=True)),
        mock.patch.object(semantic, "binary_op_sanitize_overflow_impl", binary_op),
        mock.patch.object(reductions, "to_tensor", to_tensor),
        _typed_loops(interpreter),
    ):
        yield


@contextmanager
def _typed_loops(interpreter):
    """`for i in range(...)` counts in a tensor of the type that the compiler gives it, not in a Python int.

    Otherwise `i * D` with a constexpr D is a product of Python ints and cannot overflow.
    """
    semantic = interpreter.interpreter_semantic

    def typed_range(*bounds, **_) -> Iterator:
        tensors = [semantic.to_tensor(bound) for bound in bounds]
        dtype = tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = semantic.integer_promote_impl(dtype, tensor.dtype)
        for i in range(*tensors):
            yield semantic.scalar_constant(i, dtype)

    class TypedLoops(interpreter.ASTTransformer):
        def visit_For(self, node: ast.For) -> ast.For:
            function = getattr(node.iter, "func", None)
            if "range" in (getattr(function, "id", None), getattr(function, "attr", None)):
                node.iter.func = ast.parse("interpreter_semantic.typed_range", mode="eval").body
            return self.generic_visit(node)

    with (
        mock.patch.object(semantic, "typed_range", typed_range, create=True),
        mock.patch.object(interpreter.FunctionRewriter, "ast_transformer", TypedLoops()),
        mock.patch.object(interpreter.InterpretedFunction, "rewritten_fn", _rewritten),
    ):
        yield


@contextmanager
def program_order(seed: int):
    """Inside, the programs of every launch run in an order drawn from the seed.

    It is never the usual order where there are two programs or more. Each program still runs as a whole.
    """
    builder = loaded_interpreter().interpreter_builder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx
    draw, place = random.Random(seed), {}

    def set_grid_dim(*grid):
        set_dim(*grid)
        programs = list(itertools.product(*map(range, grid)))
        shuffled = draw.sample(programs, len(programs))
        if shuffled == programs:
            shuffled.reverse()
        place.clear()
        place.update(zip(programs, shuffled, strict=True))

    def set_grid_idx(*program):
        set_idx(*place[program])

    with (
        mock.patch.object(builder, "set_grid_dim", set_grid_dim),
        mock.patch.object(builder, "set_grid_idx", set_grid_idx),
    ):
        yield


@contextmanager
def masked_lanes_poisoned():
    """Inside, a load that names no `other` gives NaN, or a large integer, where it is masked off.

    The interpreter gives zeros there; on a GPU anything can be in these registers.
    """
    interpreter = loaded_interpreter()
    builder, np = interpreter.interpreter_builder, interpreter.np
    load = builder.create_masked_load

    def create_masked_load(pointers, mask, other, *args):
        if other is None:
            dtype = pointers.get_element_ty()
            like = interpreter._get_np_dtype(dtype)
            fill = float("nan") if like.kind == "f" else np.iinfo(like).max // 64  # a few may be added up
            other = interpreter.TensorHandle(np.full_like(pointers.data, fill, dtype=like), dtype)
        return load(pointers, mask, other, *args)

    with mock.patch.object(builder, "create_masked_load", create_masked_load):
        yield


@contextmanager
def ordered_products():
    """Inside, `tl.dot` adds up its products in one order, in fp64, and rounds the sum once.

    The interpreter leaves products to numpy's BLAS, whose order of additions depends on the processor, its
    version and the number of rows. Here, an element depends on its own row and column alone, and what is left
    of its error is the kernel's.
    """
    interpreter = loaded_interpreter()
    np = interpreter.np

    def create_dot(a, b, d, *_):
        left, right, total = (handle.data.astype(np.float64) for handle in (a, b, d))
        product = np.empty_like(total)
        with np.errstate(all="ignore"):
            for k in range(left.shape[-1]):
                np.multiply(left[..., k, None], right[..., k, None, :], out=product)
                total += product
            return interpreter.TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    with mock.patch.object(interpreter.interpreter_builder, "create_dot", create_dot):
        yield


@contextmanager
def guarded(seed: int):
    """Poisoned memory and, where kernels are interpreted, the other guards with `program_order(seed)`."""
    with poisoned_memory():
        if not interpreted():
            yield
            return
        with overflow_trap(), masked_lanes_poisoned(), ordered_products(), program_order(seed):
            yield
