"""The Frechet distance between two sets of features, and its scale on real images."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SILENT = 0.1  # of the median standard deviation


@dataclass(frozen=True)
class Gaussian:
    """``mean`` ``[D]`` and ``covariance`` ``[D, D]``, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """The normal distribution with the moments of ``features`` ``[n, D]``, n at least 2."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features must be [n, D] with n of at least 2, got {tuple(features.shape)}")
        return cls(features.double().mean(0), torch.cov(features.double().T).reshape(features.shape[1], -1))


def gaussian_distance(one: Gaussian, other: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)), the squared Frechet distance that FID reports."""
    values, vectors = torch.linalg.eigh(one.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # C1 C2 has the eigenvalues of sqrt(C1) C2 sqrt(C1), which is symmetric.
    crossed = torch.linalg.eigvalsh(root @ other.covariance @ root).clamp(min=0).sqrt().sum()
    trace = one.covariance.trace() + other.covariance.trace() - 2 * crossed
    return ((one.mean - other.mean).square().sum() + trace).clamp(min=0).item()


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the Frechet distance of features ``[n, D]`` and ``[m, D]``, in units of the real spread.

    Features that hardly vary on real images are left out (standard deviation below a tenth of the median);
    the others are divided by their real standard deviation, so that every one counts alike.
    """
    if real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"generated has {generated.shape[1:]} features, real {real.shape[1:]}")
    real, generated = real.double(), generated.double()
    spread = real.std(0)
    used = spread > _SILENT * spread.median()
    scaled = (features[:, used] / spread[used] for features in (real, generated))
    return gaussian_distance(*(Gaussian.of(features) for features in scaled))
