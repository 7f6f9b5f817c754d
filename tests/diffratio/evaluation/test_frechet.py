import math

import pytest
import torch
from scipy.linalg import sqrtm

from diffratio.evaluation.frechet import Gaussian, frechet_distance, gaussian_distance


def gaussian(mean, covariance) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def test_independent_features_have_a_closed_form():
    one = gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 9.0]])
    other = gaussian([3.0, 5.0], [[1.0, 0.0], [0.0, 25.0]])
    assert gaussian_distance(one, other) == pytest.approx(9 + 16 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert gaussian_distance(other, one) == pytest.approx(gaussian_distance(one, other))
    assert gaussian_distance(one, one) == pytest.approx(0, abs=1e-12)


def test_correlated_features_agree_with_the_matrix_square_root():
    a, b = torch.randn(2, 6, 6, dtype=torch.float64)
    one, other = (Gaussian(torch.zeros(6, dtype=torch.float64), x @ x.T) for x in (a, b))
    root = torch.from_numpy(sqrtm((one.covariance @ other.covariance).numpy()).real)
    expected = (one.covariance + other.covariance - 2 * root).trace().item()
    assert gaussian_distance(one, other) == pytest.approx(expected, rel=1e-6)


def test_a_singular_covariance_is_no_obstacle():
    one = gaussian([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]])
    other = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    # One eigenvalue 2 against 1 in its direction, 0 against 1 in the other.
    assert gaussian_distance(one, other) == pytest.approx((math.sqrt(2) - 1) ** 2 + 1)


def test_moments_are_those_of_the_features():
    features = torch.tensor([[0.0, 2.0], [2.0, 2.0], [4.0, 5.0]])
    moments = Gaussian.of(features)
    assert moments.mean.tolist() == [2.0, 3.0]
    assert moments.covariance.tolist() == [[4.0, 3.0], [3.0, 3.0]]
    with pytest.raises(ValueError, match="features must be .* n of at least 2"):
        Gaussian.of(features[:1])


def test_the_distance_is_in_units_of_the_real_spread():
    real, generated = torch.randn(4000, 3), torch.randn(4000, 3) + torch.tensor([0.0, 0.0, 2.0])
    distance = frechet_distance(real, generated)
    assert distance == pytest.approx(4, rel=0.1)
    units = torch.tensor([100.0, 1.0, 0.5])
    assert frechet_distance(real * units, generated * units) == pytest.approx(distance, rel=1e-4)


def test_features_that_are_silent_on_real_images_do_not_count():
    real, generated = torch.randn(500, 3), torch.randn(500, 3)
    real[:, 0] *= 1e-3
    with_silent = frechet_distance(real, generated)
    assert with_silent == pytest.approx(frechet_distance(real[:, 1:], generated[:, 1:]))
    assert with_silent < 0.1


def test_different_features_are_refused():
    with pytest.raises(ValueError, match="generated has .* features"):
        frechet_distance(torch.randn(4, 3), torch.randn(4, 2))
