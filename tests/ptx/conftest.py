"""Hand-written PTX in the executor of tools/ptx."""

import struct

import pytest
import torch

from tools.ptx.executor import Options, launch, machine

HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 128 .b8 dynamic[];
.visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)
{{
.reg .pred %p<20>; .reg .b16 %h<20>; .reg .b32 %r<200>; .reg .b64 %d<40>; .reg .f32 %f<20>;
ld.param.u64 %d0, [k_param_0];
ld.param.u64 %d1, [k_param_1];
mov.u32 %r0, %tid.x;
mov.u32 %r1, %ctaid.x;
mad.lo.s32 %r2, %r1, {threads}, %r0;
{body}
ret;
}}
"""


@pytest.fixture(scope="session")
def fault():
    """What a fault raises."""
    return machine().PtxError


@pytest.fixture(scope="session")
def run():
    """body, given, out -> out: %d0 and %d1 are their addresses, %r0 the thread, %r1 the block, %r2 both."""

    def run(body, given, out, threads=64, blocks=1, shared=4096, **options):
        kernel = machine().Kernel(HEAD.format(body=body, threads=threads))
        addresses = [struct.pack("Q", t.data_ptr()) for t in (given, out)]
        launch(kernel, (blocks,), (threads,), addresses, [given, out], shared, Options(**options))
        return out

    return run


REGISTERS = {2: ("h", "b16", torch.int16), 4: ("r", "b32", torch.int32), 8: ("d", "b64", torch.int64)}


@pytest.fixture(scope="session")
def each(run):
    """instruction, rows [n, arity] of integers as they lie in registers -> n integers, without their sign.

    bytes, out_bytes: of the registers.
    """

    def each(instruction, rows, bytes=4, out_bytes=4):
        count, arity = rows.shape
        name, kind, dtype = REGISTERS[bytes]
        out_name, out_kind, out_dtype = REGISTERS[out_bytes]
        operands = [f"%{name}{10 + n}" for n in range(arity)]
        result = f"%{out_name}19"
        body = [
            f"setp.lt.u32 %p1, %r2, {count}",
            f"mul.wide.u32 %d2, %r2, {bytes * arity}",
            "add.s64 %d3, %d0, %d2",
        ]
        body += [f"@%p1 ld.global.{kind} {operand}, [%d3+{bytes * n}]" for n, operand in enumerate(operands)]
        body += [f"@%p1 {instruction.format(result, *operands)}", f"mul.wide.u32 %d4, %r2, {out_bytes}"]
        body += ["add.s64 %d5, %d1, %d4", f"@%p1 st.global.{out_kind} [%d5], {result}", ""]
        out = torch.zeros(count, dtype=out_dtype)
        run(";\n".join(body), rows.to(dtype).contiguous(), out, blocks=-(-count // 64))
        return [value & (2 ** (8 * out_bytes) - 1) for value in out.tolist()]

    return each
