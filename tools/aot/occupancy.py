"""How many blocks of a kernel fit on a multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor, and the shared memory in bytes that one block can have."""

    shared: int
    shared_per_block: int
    threads: int = 2048
    registers: int = 65536
    blocks: int = 32


MULTIPROCESSORS = {
    80: Multiprocessor(164 * 1024, 163 * 1024),
    90: Multiprocessor(228 * 1024, 227 * 1024),
    100: Multiprocessor(228 * 1024, 227 * 1024),
}
RESERVED_SHARED = 1024
"""Bytes of each block's shared memory that the system keeps."""
_PARTITIONS = 4  # each with a quarter of the registers; a warp lives in one


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """Part of a multiprocessor's threads that can be resident at once."""
    limits, warps = MULTIPROCESSORS[architecture], -(-threads // 32)
    per_warp = _round_up(registers * 32, 256)
    warps_by_registers = limits.registers // _PARTITIONS // per_warp * _PARTITIONS
    per_block = _round_up(shared + RESERVED_SHARED, 128)
    blocks = min(
        limits.blocks,
        limits.threads // (warps * 32),
        warps_by_registers // warps,
        limits.shared // per_block if shared <= limits.shared_per_block else 0,
    )
    return blocks * warps * 32 / limits.threads


def blocks(row: dict) -> int:
    """Blocks on a multiprocessor, of a row of the report."""
    return round(row["occupancy"] * MULTIPROCESSORS[row["architecture"]].threads / row["threads"])


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
