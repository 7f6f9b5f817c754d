"""Triton's interpreter with less work of its own: the same kernels, values and errors, sooner."""

from __future__ import annotations

import dataclasses
import functools
from contextlib import contextmanager
from unittest import mock

from .interpreter import loaded_interpreter


@contextmanager
def quick_interpreter():
    """Inside, launches do nothing twice and nothing in vain."""
    interpreter = loaded_interpreter()
    builder = interpreter.interpreter_builder
    # An overflow is asserted with debug=True only, as `overflow_trap` sets it, and computed in any case.
    idle = dataclasses.replace(builder.options, sanitize_overflow=False)
    with (
        mock.patch.object(builder, "options", idle),
        mock.patch.object(interpreter, "_get_np_dtype", _remembered_dtypes(interpreter)),
        mock.patch.object(interpreter, "_patch_builtin", _remembered_builtins(interpreter)),
        _language_exchanged_once(interpreter),
        _remembered_shapes(interpreter.tl),
        _alike_operands(interpreter),
    ):
        yield


def _remembered_dtypes(interpreter):
    """Triton's dtype -> numpy's, without Triton's dict of all of them, made for every question."""
    remembered, pointer = functools.cache(interpreter._get_np_dtype), interpreter.np.dtype("uint64")

    def np_dtype(dtype):
        scalar = dtype.scalar
        return pointer if scalar.is_ptr() else remembered(scalar)

    return np_dtype


@contextmanager
def _remembered_shapes(tl):
    """What tensors and their types hold of a shape, and the name of a type, are made once for each."""
    tensor, block_type, shapes, types = tl.tensor.__init__, tl.block_type.__init__, {}, {}

    def make_tensor(self, handle, type):
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in shapes:
            tensor(self, handle, type)
            shapes[shape] = vars(self).copy()
        vars(self).update(shapes[shape], handle=handle, type=type, dtype=type.scalar)

    def make_type(self, element_ty, shape):
        key = element_ty.name, tuple(getattr(size, "value", size) for size in shape)
        if key not in types:
            block_type(self, element_ty, shape)
            types[key] = vars(self).copy()
        vars(self).update(types[key], element_ty=element_ty)

    with (
        mock.patch.object(tl.tensor, "__init__", make_tensor),
        mock.patch.object(tl.block_type, "__init__", make_type),
    ):
        yield


@contextmanager
def _alike_operands(interpreter):
    """Two operands of one shape and type are what an operation makes of them: nothing is cast or broadcast.

    Tensors of one shape share what holds it, by `_remembered_shapes`. fp16 is not among the types, which
    divisions cast.
    """
    tl, semantic = interpreter.tl, type(interpreter.interpreter_semantic)
    check, broadcast = semantic.binary_op_type_checking_impl, semantic.broadcast_impl_value
    kept = {id(dtype) for dtype in (tl.int1, tl.int32, tl.int64, tl.float32, tl.float64)}

    def alike(lhs, rhs):
        return type(lhs) is type(rhs) is tl.tensor and lhs.shape is rhs.shape

    def checked(self, lhs, rhs, *flags, **named):
        if alike(lhs, rhs) and lhs.dtype is rhs.dtype and id(lhs.dtype) in kept:
            return lhs, rhs
        return check(self, lhs, rhs, *flags, **named)

    def broadcast_to_each_other(self, lhs, rhs):
        return (lhs, rhs) if alike(lhs, rhs) else broadcast(self, lhs, rhs)

    with (
        mock.patch.object(semantic, "binary_op_type_checking_impl", checked),
        mock.patch.object(semantic, "broadcast_impl_value", broadcast_to_each_other),
    ):
        yield


def _remembered_builtins(interpreter):
    """What a module or class of the language has to exchange is looked up once."""
    found = {}

    def patch_builtin(owner, *args):
        if owner not in found:
            members = interpreter.inspect.getmembers(owner)
            found[owner] = [
                (name, member) for name, member in members if interpreter.tl.core.is_builtin(member)
            ]
        for name, member in found[owner]:
            interpreter._patch_attr(owner, name, member, *args)

    return patch_builtin


@contextmanager
def _language_exchanged_once(interpreter):
    """A launch exchanges Triton's language for the interpreter's once.

    The interpreter does so again in every function that a kernel calls, and finds nothing left to exchange.
    """
    tl, plain, exchanged = interpreter.tl, interpreter._patch_lang, set()

    @functools.cache
    def language_of(fn):
        return {m.__name__ for m in fn.__globals__.values() if m is tl or m is tl.core}

    def patch_lang(fn):
        language = language_of(fn)
        if language <= exchanged:
            return interpreter._LangPatchScope()
        outermost, scope = not exchanged, plain(fn)
        exchanged.update(language)
        if outermost:
            restore = scope.restore
            scope.restore = lambda: (restore(), exchanged.clear())
        return scope

    with mock.patch.object(interpreter, "_patch_lang", patch_lang):
        yield
