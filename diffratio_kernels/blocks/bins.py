"""Kept ratios live on tenths: how many tokens a bin keeps, and which bins a learned ratio lies between."""

DEFAULT_BINS = (10, 9, 8, 7, 6, 5, 4, 3)
"""Kept tenths, 1.0 ... 0.3: the authors' candidates."""
ROUNDINGS = ("ceil", "floor")


def kept_tokens(tenths: int, tokens: int, rounding: str = "ceil") -> int:
    """k = min(N, ceil(tenths * N / 10)), in integers: `ceil(0.3 * 100)` in float32 is 31 (paper section 3.3).

    Args:
        tenths: kept ratio in tenths, 0..10.
        tokens: N.
        rounding: "ceil", or "floor" as the authors' uniform MoD has it: 819 of 1024 tokens at 8 tenths
            instead of 820, and at least one.

    Returns:
        K, in 0..N.

    Raises:
        ValueError: another rounding.

    Example:
        >>> kept_tokens(3, 100)
        30
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding!r} must be one of {ROUNDINGS}")
    if rounding == "floor":
        return max(tenths * tokens // 10, min(tenths, 1))
    return min(tokens, -(-tenths * tokens // 10))


def snap_to_bins(ratio: float, bins: tuple[int, ...] = DEFAULT_BINS) -> int:
    """Kept tenths used at inference: the nearest bin, ties towards the larger one (paper section 3.3)."""
    return min(bins, key=lambda bin: (round(abs(bin - 10 * ratio), 6), -bin))


def bracketing_bins(ratio: float, bins: tuple[int, ...] = DEFAULT_BINS) -> tuple[int, int, float]:
    """The bins a <= ratio <= b next to each other and the weight of b, `w_b = (ratio - a) / (b - a)`.

    The ratio is clamped to [smallest bin, largest bin] first; on a bin, a is that bin's lower neighbour
    and w_b is 1, except on the smallest bin, where b is its upper neighbour and w_b is 0.
    """
    ordered = sorted(bins)
    if len(ordered) == 1:
        return ordered[0], ordered[0], 1.0
    tenths = min(max(10 * ratio, ordered[0]), ordered[-1])
    upper = next(i for i in range(1, len(ordered)) if tenths <= ordered[i])
    a, b = ordered[upper - 1], ordered[upper]
    return a, b, (tenths - a) / (b - a)
