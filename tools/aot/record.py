"""Which Triton kernels a call of an operator's function runs, with the types and constants the compiler sees.

The function itself is called, on tensors of the meta device: what is compiled is what would run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffratio_kernels._triton import launch, stand_ins, tiles

_POINTER = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
_COMPILER_OPTIONS = ("num_warps", "num_stages", *launch.FP_FUSION, *launch.FEW_REGISTERS)


@dataclass(frozen=True)
class Specialization:
    """One kernel as the compiler gets it: argument types, constants, 16-byte alignment, and its options."""

    kernel: object
    signature: dict[str, str]
    constants: dict[str, object]
    aligned: tuple[int, ...]
    options: dict[str, int | bool]

    @property
    def name(self) -> str:
        return self.kernel.__name__.removeprefix("_")


def record(architecture: int, function: Callable, *arguments) -> list[Specialization]:
    """The kernels that `function(*arguments)`, on meta tensors, would launch on a GPU of this compute
    capability."""
    found: list[Specialization] = []
    before = tiles.assumed_architecture
    stand_ins["meta"] = lambda kernel, _, args, options: found.append(specialize(kernel, args, options))
    tiles.assumed_architecture = architecture
    try:
        function(*arguments)
    finally:
        tiles.assumed_architecture = before
        del stand_ins["meta"]
    return found


def specialize(kernel, args: tuple, options: dict) -> Specialization:
    """What Triton's own launcher hands to the compiler for these arguments."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    constants = {name: value for name, value in options.items() if name not in _COMPILER_OPTIONS}
    signature, aligned = {}, []
    for place, name in enumerate(kernel.arg_names):
        value = values.get(name)
        if name in constants or value is None or (type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants.setdefault(name, value)
        elif isinstance(value, Tensor):
            signature[name] = _POINTER[value.dtype]
            # Allocations themselves are aligned; on the meta device they have no address.
            at = value.storage_offset() * value.element_size() if value.is_meta else value.data_ptr()
            if at % 16 == 0:
                aligned.append(place)
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif isinstance(value, bool):
            signature[name] = "u1"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(place)
    chosen = {name: options[name] for name in _COMPILER_OPTIONS if name in options}
    return Specialization(kernel, signature, constants, tuple(aligned), chosen)
