"""`two_bin_blend`: w times `scatter_rescale` of the large bin and 1 - w times that of the small one."""

import pytest
import torch

import diffratio_kernels as dk
from diffratio_kernels.testing.cases import TwoBinCase, two_bin_arguments


@pytest.mark.parametrize("rescale", ["mlp", "residual", "output", "none"])
@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpu", torch.float64), ("triton", torch.float32), ("reference", torch.float64)]
)
def test_it_is_the_blend_of_two_scatters(backend, dtype, rescale):
    """With one branch for both bins: its blend, w + (1 - w) of it, is itself on rows that both bins hold."""
    case = TwoBinCase(seed=0, keep=(9, 20), keep_small=(4, 20), rescale=rescale, dtype=dtype)
    a = two_bin_arguments(case)["two_bin_blend"]
    small = torch.cat([torch.arange(4), 9 + torch.arange(20)])  # of the packed rows
    weights = a["weight_large"][a["index"] // 24, None].to(dtype)
    share = torch.where(torch.isin(torch.arange(29), small)[:, None], 1, weights)
    out = dk.two_bin_blend(**a | {"branch": share * a["branch"]}, backend=backend)

    def scattered(rows, hidden):
        finish = a["gate"], a["logits"], rescale, case.score_scale
        branch = a["branch"][rows]
        return dk.scatter_rescale(a["x"], a["index"][rows], hidden, branch, *finish, backend=backend)

    large, of_small = scattered(slice(29), a["hidden"][:29]), scattered(small, a["hidden"][29:])
    w = a["weight_large"][:, None, None].to(dtype)
    torch.testing.assert_close(out, w * large + (1 - w) * of_small)
