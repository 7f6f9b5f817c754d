"""FLOPs of a training step of one block: forward and backward, dense, with one bin or with two."""


def training_flops(
    tokens: int, keep_large: int, keep_small: int, width: int, text_tokens: int, *, packed: bool = True
) -> int:
    """True FLOPs of one sample, forward and backward, with the text keys and values given.

    A product costs twice its forward in the backward; attention 2.5 times (its scores are computed again).
    keep_small 0 is one bin. packed: QKV, attention's keys and fc2 once for both bins; else two passes.

    Args:
        tokens, keep_large, keep_small: N and the kept tokens of both bins.
        width, text_tokens: D and M.
    """
    if not packed:
        return sum(training_flops(tokens, k, 0, width, text_tokens) for k in (keep_large, keep_small))
    both = keep_large + keep_small
    # Per row: qkv 6, fc2 8 on the large set; out 2, cross q 2, cross out 2, fc1 8 on both (in D^2).
    linear = width**2 * (14 * keep_large + 14 * both)
    attention = width * (14 * keep_large**2 + 4 * keep_small**2 + 14 * both * text_tokens)
    return 3 * linear + attention + 6 * tokens * width
