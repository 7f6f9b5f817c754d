"""FLOPs of forward and backward with two bins: the published arithmetic of packing them."""

import pytest

from benchmarks.suites.training import training_flops
from diffratio_kernels import kept_tokens


@pytest.mark.parametrize(
    ("small", "large", "ratio", "twice"),
    [(3, 4, 0.53, 0.69), (4, 5, 0.67, 0.88), (5, 6, 0.81, 1.07), (6, 7, 0.96, 1.27), (8, 9, 1.27, 1.68)],
)
def test_two_bins_packed_against_two_passes(small, large, ratio, twice):
    """PixArt-XL/2 at 512 px with 300 text tokens, whose keys and values each pass projects itself."""
    tokens, width, text = 1024, 1152, 300
    keep_small, keep_large = (kept_tokens(tenths, tokens) for tenths in (small, large))
    dense = training_flops(tokens, tokens, 0, width, text)
    packed = training_flops(tokens, keep_large, keep_small, width, text)
    passes = training_flops(tokens, keep_large, keep_small, width, text, packed=False)
    projected = 12 * text * width**2
    assert (packed + projected) / (dense + projected) == pytest.approx(ratio, abs=0.006)
    assert (passes + 2 * projected) / (dense + projected) == pytest.approx(twice, abs=0.006)
