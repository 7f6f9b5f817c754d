"""How fast our attention is beside every library: the shapes, each a subject of the harness whose first
candidate is ours, and the ratios of its rows, which `diffratio_kernels._choice` reads in the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.measure import measure
from benchmarks.harness.subject import Candidate, Subject
from diffratio_kernels import attention, reference, two_bin_attention
from diffratio_kernels._backends import BACKENDS
from diffratio_kernels.testing.budget import check_budget

OURS, *LIBRARIES, _ = BACKENDS["attention"]

Case = dict[str, object]
"""Arguments of `attention` or `two_bin_attention`."""


@dataclass(frozen=True)
class Bucket:
    """A shape: kind, queries, keys and head_dim as in the table. Ragged samples differ in queries, and keys
    are the same rows; or, where these are fewer, in keys alone, as padded text does."""

    kind: str
    samples: int
    queries: int
    keys: int
    heads: int = 16
    head_dim: int = 72

    def key(self, architecture: int) -> dict:
        """What names its entry in the table."""
        sizes = {name: getattr(self, name) for name in ("queries", "keys", "head_dim")}
        return {"kind": self.kind, "architecture": architecture, **sizes}

    def __str__(self) -> str:
        sizes = f"{self.samples} x {self.queries} x {self.keys}"
        return f"{self.kind} attention {sizes}, {self.heads} heads of {self.head_dim}"


def buckets() -> list[Bucket]:
    """The most used first: 1024 and 4096 tokens at keep 1, .5 and .3, text of 300."""
    counts = (16, 1024), (16, 512), (16, 308), (2, 4096), (2, 2048), (2, 1229)
    texts = counts[:2] + counts[3:5]
    return [
        *(Bucket("self", *count, count[1]) for count in counts),
        *(Bucket(kind, *count, 300) for kind in ("ragged", "cross") for count in texts),
        *(Bucket("ragged", *count, count[1]) for count in (counts[1], counts[4])),
        *(Bucket("two_bins", *both) for both in ((16, 615, 512), (2, 2458, 2048))),
    ]


REHEARSED = [
    Bucket(kind, 2, 17, keys, heads=1, head_dim=8)
    for kind, keys in (("self", 17), ("ragged", 17), ("ragged", 5), ("cross", 5), ("two_bins", 11))
]
"""For the interpreter: every kind."""


def subject_of(bucket: Bucket, dtype: torch.dtype, device: str) -> Subject:
    """Ours, then every library."""
    moved = bucket.samples * bucket.heads * bucket.head_dim * dtype.itemsize
    moved *= (bucket.queries + bucket.keys) * 2
    candidates = tuple(
        Candidate(name, partial(_run, name), partial(_check, bucket, name), ours=name == OURS)
        for name in (OURS, *LIBRARIES)
    )
    make = partial(_case, bucket, dtype, device)
    return Subject("attention", str(bucket), dtype, asdict(bucket), make, moved, candidates)


def ratios(
    bucket: Bucket, dtype: torch.dtype, device: str, rounds: int
) -> tuple[dict[str, float], list[dict]]:
    """Library -> our seconds as a part of its own, and the rows of the candidates that were refused."""
    modes = ("graph",) if device == "cuda" else None
    rows = measure(subject_of(bucket, dtype, device), device, rounds, progress=False, modes=modes)
    timed = [row for row in rows if row.get("cache") == "cold" and "of_baseline" in row]
    of = {row["name"]: round(1 / row["of_baseline"], 3) for row in timed if row["name"] != OURS}
    return of, [row for row in rows if "refused" in row]


def _counts(longest: int, samples: int) -> list[int]:
    """Of samples that differ: from the longest down to a half of it."""
    return [longest - i * longest // (2 * samples) for i in range(samples)]


def _case(bucket: Bucket, dtype: torch.dtype, device: str, seed: int) -> Case:
    generator = torch.Generator(device).manual_seed(seed)

    def draw(rows: int) -> Tensor:
        sizes = rows, bucket.heads, bucket.head_dim
        return torch.randn(sizes, generator=generator, device=device).to(dtype)

    two_bins, ragged = bucket.kind == "two_bins", bucket.kind == "ragged"
    among, samples = bucket.queries == bucket.keys, bucket.samples
    case, rows = {}, []
    for name, longest in zip(
        ("large", "small") if two_bins else ("q", "k"), (bucket.queries, bucket.keys), strict=True
    ):
        counts = _counts(longest, samples) if ragged and among else [longest] * samples
        offsets = reference.cu_seqlens_of(counts, torch.device(device))
        case |= {f"cu_seqlens_{name}": offsets, f"max_seqlen_{name}": longest}
        rows.append(sum(counts))
    if two_bins:
        case["small"] = rows[1]
    if ragged and not among:  # padded text
        lengths = _counts(bucket.keys, samples)
        case["key_lengths"] = torch.tensor(lengths, dtype=torch.int32, device=device)
    key_rows = rows[0] if two_bins else rows[1]
    return case | {"query": draw(rows[0]), "key": draw(key_rows), "value": draw(key_rows)}


def _run(backend: str, case: Case) -> Tensor:
    return (two_bin_attention if "small" in case else attention)(**case, backend=backend)


def _check(bucket: Bucket, backend: str, case: Case) -> None:
    """Assert that the first head is within the error budget: heads know nothing of each other."""
    first = {name: case[name][:, :1] for name in ("query", "key", "value")}
    peer = _run("reference", case | first)
    gold = _run("reference", case | {name: t.double() for name, t in first.items()})
    terms = max(bucket.queries, bucket.keys)
    check_budget(f"attention {backend}", _run(backend, case)[:, :1], peer, gold, terms=terms)
