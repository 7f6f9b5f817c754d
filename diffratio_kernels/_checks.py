"""Every argument check and every error text. Each error names the operator and the argument."""

from numbers import Integral

import torch
from torch import Tensor

from .types import Bins, Nested

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = ("gelu_tanh", "gelu", "silu")
RESCALE = ("mlp", "residual", "output", "none")


def counts(keep: int | list[int] | None, batch: int = 1) -> list[int] | None:
    """Kept counts as a schema takes them, a list, or those of each of `batch` samples.

    Of a traced batch nothing may become a constant: one count stays that of every sample.
    """
    if not isinstance(keep, list) and isinstance(keep, Integral):
        keep = [keep]
    if isinstance(keep, list) and len(keep) == 1 and isinstance(batch, int):
        keep = keep * batch
    return keep


def readable(t: Tensor) -> bool:
    """Whether the values of a tensor can be looked at without a sync: on the CPU, and not while tracing."""
    return t.device.type == "cpu" and type(t) is Tensor


def _by_sample(index: Tensor, tokens: int, kept: Tensor) -> bool:
    return torch.equal(index // tokens, torch.arange(len(kept)).repeat_interleave(kept))


class Check:
    """Checks for one call of one operator: `Check("route").tensor("x", x, "B N D")`.

    Letters are bound to sizes where they first occur and must agree from then on; the first tensor sets
    the device of all.
    """

    def __init__(self, op: str):
        self.op = op
        self.sizes: dict[str, tuple[int, str]] = {}
        self.device: tuple[torch.device, str] | None = None

    def fail(self, text: str, error: type[Exception] = ValueError):
        raise error(f"{self.op}: {text}")

    def tensor(self, name: str, value: Tensor, shape: str, dtypes=FLOATS, dtype_of: tuple | None = None):
        """`shape` is letters or integers; `dtype_of=(other_name, tensor)` asks for that tensor's dtype."""
        letters = shape.split()
        if not isinstance(value, Tensor):
            self.fail(f"{name} must be a tensor, got {type(value).__name__}", TypeError)
        if value.layout != torch.strided:
            self.fail(f"{name} must be a dense tensor, got layout {value.layout}", TypeError)
        if value.dim() != len(letters):
            self.fail(f"{name} must be [{', '.join(letters)}], got shape {tuple(value.shape)}")
        for letter, size in zip(letters, value.shape, strict=True):
            expected, source = self.sizes.get(letter) or self._expected(letter, size, name)
            if size != expected:
                self.fail(
                    f"{name} must be [{', '.join(letters)}] with {letter}={expected} (from {source}), "
                    f"got shape {tuple(value.shape)}"
                )
        if value.dtype not in dtypes:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
            self.fail(f"{name} must be of dtype {allowed}, got {value.dtype}", TypeError)
        if dtype_of is not None and value.dtype != dtype_of[1].dtype:
            self.fail(
                f"{name} must have the dtype of {dtype_of[0]}, {dtype_of[1].dtype}, got {value.dtype}",
                TypeError,
            )
        if self.device is None:
            self.device = (value.device, name)
        if value.device != self.device[0]:
            self.fail(f"{name} must be on {self.device[0]} like {self.device[1]}, got {value.device}")

    def optional(self, name: str, value: Tensor | None, shape: str, **kwargs):
        if value is not None:
            self.tensor(name, value, shape, **kwargs)

    def linear(self, name: str, weight: Tensor, bias: Tensor | None, shape: str, **kwargs):
        """`<name>_weight` of a shape [F, D] and `<name>_bias` [F] or None."""
        self.tensor(f"{name}_weight", weight, shape, **kwargs)
        self.optional(f"{name}_bias", bias, shape.split()[0], **kwargs)

    def _expected(self, letter: str, size: int, name: str):
        if letter.isdigit():
            return int(letter), "the operator"
        if letter[0].isdigit():  # "3D": a multiple of a bound letter
            base, source = self.sizes[letter[1:]]
            return int(letter[0]) * base, source
        return self.sizes.setdefault(letter, (size, name))

    def size(self, letter: str) -> int:
        """What a letter is bound to."""
        return self.sizes[letter][0]

    def keep(self, keep: list[int], name: str = "keep") -> list[int]:
        """Kept counts for all B samples from one int or B ints, each in 0..N."""
        batch, tokens = self.sizes["B"][0], self.sizes["N"][0]
        if batch * tokens >= 2**31:  # places and offsets of rows are int32
            self.fail(f"x must have fewer than 2^31 rows (B times N), got {batch} times {tokens}")
        if len(keep) not in (1, batch):
            self.fail(f"{name} must hold one int or {batch} (one per sample), got {len(keep)}")
        for b, k in enumerate(keep):
            if k < 0 or k > tokens:
                self.fail(f"{name}[{b}]={k} must be in 0..{tokens} (tokens of x)")
        return counts(list(keep), batch)

    def keep_small(self, keep_small: list[int], keep: list[int], keep_name: str = "keep") -> list[int]:
        """The small bin's kept counts for all B samples, none above the large bin's."""
        keep_small = self.keep(keep_small, "keep_small")
        for b, (small, large) in enumerate(zip(keep_small, keep, strict=True)):
            if small > large:
                self.fail(f"keep_small[{b}]={small} must be at most {keep_name}[{b}]={large}")
        return keep_small

    def index(self, index: Tensor, rows: int, keep: list[int] | None = None, keep_name: str = "keep"):
        """Rows of the flattened x, each at most once; with `keep`, keep[b] of sample b, by sample."""
        self.tensor("index", index, "T", dtypes=(torch.int64,))
        if keep is not None and index.shape[0] != sum(keep):
            self.fail(f"index must hold sum({keep_name})={sum(keep)} rows, got {index.shape[0]}")
        if not readable(index) or index.shape[0] == 0:
            return
        low, high = index.aminmax()
        if low < 0 or high >= rows:
            bad = low if low < 0 else high
            self.fail(f"index holds {bad.item()}, must be in 0..{rows - 1} (rows of the flattened x)")
        if index.bincount(minlength=rows).max() > 1:
            self.fail("index must hold each row at most once")
        if keep is not None and not _by_sample(index, rows // len(keep), torch.tensor(keep)):
            self.fail(f"index must hold {keep_name}[b] rows of each sample b, sample after sample")

    def groups(self, groups: Tensor | None, vectors: int, tokens: int):
        """Which of so many rows of the modulation belongs to each of the N tokens of each sample."""
        self.optional("groups", groups, "B N", dtypes=(torch.int64,))
        if groups is None:
            return
        if groups.shape[1] != tokens:
            self.fail(f"groups must be [B, N] with N={tokens}, got shape {tuple(groups.shape)}")
        if readable(groups) and groups.numel() > 0:
            low, high = groups.aminmax()
            if low < 0 or high >= vectors:
                bad = low if low < 0 else high
                self.fail(f"groups holds {bad.item()}, must be in 0..{vectors - 1} (rows of the modulation)")

    def two_bins(self, bins: Bins, rows: tuple[str, int], both: tuple[str, int]):
        """Weights and cumulative counts of two bins; `rows` and `both`: which argument tells T or T + S, and
        it."""
        name, length = both
        if not 0 <= rows[1] <= length:
            self.fail(f"{name} must hold {rows[1]} large rows (from {rows[0]}) and the small, got {length}")
        nested = Nested(bins.cu_seqlens_large, bins.cu_seqlens_small, None, None, length - rows[1])
        self.nested(nested, rows, (f"{name} and {rows[0]}", length - rows[1]))
        self.tensor("weight_large", bins.weight_large, "B")
        samples, weights = bins.cu_seqlens_large.shape[0] - 1, bins.weight_large.shape[0]
        if weights != samples:
            self.fail(f"weight_large must hold {samples} values (one per sample), got {weights}")

    def nested(self, nested: Nested, rows: tuple[str, int], small: tuple[str, int]):
        """Cumulative counts [B+1] of all large and all small rows, no more of these in any sample; `rows` and
        `small`: which argument tells how many there are, and the number."""
        if not 0 <= small[1] <= rows[1]:
            self.fail(f"small rows must be 0..{rows[1]} (from {rows[0]}), got {small[1]} (from {small[0]})")
        large, little = nested.cu_seqlens_large, nested.cu_seqlens_small
        self.cumulative("large", large, rows, nested.max_seqlen_large, exact=True)
        self.cumulative("small", little, small, nested.max_seqlen_small, exact=True)
        if readable(large) and readable(little) and (little.diff() > large.diff()).any():
            self.fail(f"cu_seqlens_small={little.tolist()} must not exceed the steps of cu_seqlens_large")

    def cumulative(
        self, which: str, cu_seqlens: Tensor, rows: tuple[str, int], longest: int | None, exact: bool = False
    ):
        """`cu_seqlens_<which>` [B+1], as many rows as the argument `rows` tells, and `max_seqlen_<which>`: at
        least the most of a sample or, with `exact`, just that."""
        name, (source, last) = f"cu_seqlens_{which}", rows
        self.tensor(name, cu_seqlens, "B+1", dtypes=(torch.int32,))
        samples, most = cu_seqlens.shape[0] - 1, 0
        if samples < 0:
            self.fail(f"{name} must hold B+1 values, got none")
        if readable(cu_seqlens):
            steps = cu_seqlens.diff().tolist()
            if cu_seqlens[0] != 0 or cu_seqlens[-1] != last or any(step < 0 for step in steps):
                self.fail(f"{name}={cu_seqlens.tolist()} must rise from 0 to {last} (from {source})")
            most = max(steps, default=0)
        if longest is None:
            return
        if not 0 <= longest <= last <= longest * samples:
            self.fail(f"max_seqlen_{which}={longest} cannot be that of {samples} samples of {last} rows")
        if longest < most or (exact and readable(cu_seqlens) and longest != most):
            self.fail(f"max_seqlen_{which}={longest} must be the longest step of {name}, {most}")

    def by_sample(self, index: Tensor, tokens: int, cu_seqlens_large: Tensor):
        """Packed rows lie sample after sample, as the offsets say."""
        if not readable(index) or not readable(cu_seqlens_large):
            return
        kept = cu_seqlens_large.diff()
        if not _by_sample(index, tokens, kept):
            self.fail(f"index must hold rows of sample after sample, {kept.tolist()} (from cu_seqlens_large)")

    def grouped_heads(self, query: Tensor, key: Tensor, value: Tensor, rows: str):
        """query [T, H, d], key and value [rows, h, d]: each head of key serves H / h heads of query."""
        self.tensor("query", query, "T H d")
        self.tensor("key", key, f"{rows} h d", dtype_of=("query", query))
        heads, few = query.shape[1], key.shape[1]
        if few != heads and (few == 0 or heads % few):
            self.fail(f"key has {few} heads, must divide the {heads} of query")
        self.tensor("value", value, f"{rows} h d", dtype_of=("query", query))
        if query.shape[2] % 8 or query.shape[2] == 0:
            self.fail(f"query has head_dim {query.shape[2]}, must be a positive multiple of 8")

    def heads(self, num_heads: int):
        width, _ = self.sizes["D"]
        if num_heads < 1 or width % num_heads:
            self.fail(f"num_heads={num_heads} must be positive and divide the width {width} of x")
        if width // num_heads % 8:
            self.fail(f"num_heads={num_heads} gives head_dim {width // num_heads}, must be a multiple of 8")

    def choice(self, name: str, value: str, allowed: tuple[str, ...]):
        if value not in allowed:
            self.fail(f"{name}={value!r} must be one of {allowed}")

    def positive(self, name: str, value: float):
        if not 0 < value < float("inf"):
            self.fail(f"{name}={value} must be positive and finite")
