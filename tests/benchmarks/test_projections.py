"""python -m benchmarks.projections: all ways compute the same."""

import torch

from benchmarks.projections import WIDTH, ways


def test_all_ways_compute_the_same():
    flat = []
    for call in ways(16).values():
        value = call()
        value = value if torch.is_tensor(value) else torch.cat([t.flatten(1) for t in value], dim=1)
        flat.append(value.clone())
    assert flat[0].shape == (16, 3 * WIDTH)
    for other in flat[1:]:
        torch.testing.assert_close(other, flat[0], rtol=1e-4, atol=1e-4)
