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


class Moments:
    """Mean and covariance of features that come in parts, which are not kept."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Take in features ``[n, D]``."""
        features = features.double()
        count, mean = len(features), features.mean(0)
        if not self.count:
            self._mean, self._scatter = torch.zeros_like(mean), features.new_zeros(len(mean), len(mean))
        total, apart, centred = self.count + count, mean - self._mean, features - mean
        # Each part around its own mean, and the means around each other: no large squares cancel.
        between = torch.outer(apart, apart) * (self.count * count / total)
        self._scatter = self._scatter + centred.T @ centred + between
        self._mean, self.count = self._mean + apart * (count / total), total

    def gaussian(self) -> Gaussian:
        """Return the normal distribution with these moments.

        Raises:
            ValueError: fewer than 2 features came.
        """
        if self.count < 2:
            raise ValueError(f"features: {self.count} came, at least 2 are needed")
        return Gaussian(self._mean, self._scatter / (self.count - 1))


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
