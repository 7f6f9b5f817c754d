"""What two runs must have in common to be the same run."""

import json
from pathlib import Path

import torch
from accelerate.utils import load
from safetensors.torch import load_file


def lines(folder: Path, name: str = "log.jsonl") -> list[dict]:
    """The lines of a log without the one thing that depends on the clock."""
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def flat(value, name: str = "") -> dict:
    """Nested dicts and lists -> leaves by their path; tensors as bytes."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {name: (value.dtype, tuple(value.shape), raw)}
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in flat(one, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, one in enumerate(value) for k, v in flat(one, f"{name}.{i}").items()}
    return {name: str(value)}


def contents(checkpoint: Path) -> dict:
    """Every file below a checkpoint or result, in comparable leaves."""
    found = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = str(path.relative_to(checkpoint))
        if path.suffix == ".safetensors":
            found |= flat(load_file(path), name)
        elif path.suffix in (".bin", ".pkl"):
            found |= flat(load(path), name)
        elif path.name != "checkpoint.json":
            found |= {name: path.read_text()}
    return found


def assert_same_run(first: Path, second: Path, step: int) -> None:
    """Bit-equal weights, optimiser, generators, average, controller, result and logs."""
    for name in ("log.jsonl", "ratios.jsonl"):
        assert lines(first, name) == lines(second, name)
    for folder in (f"checkpoint-{step}", "final"):
        one, other = contents(first / folder), contents(second / folder)
        assert list(one) == list(other)
        assert [name for name in one if one[name] != other[name]] == []
