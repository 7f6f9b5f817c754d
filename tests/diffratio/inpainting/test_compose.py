"""What was made and what was there: seams, and pixels outside of the mask."""

import pytest
import torch

from diffratio.inpainting.compose import pasted, poisson_blended


def solved(made, picture, mask):
    """The same by a dense matrix, pixel by pixel."""
    height, width = mask.shape
    places = {tuple(place): row for row, place in enumerate(mask.nonzero().tolist())}
    matrix = torch.zeros(len(places), len(places), dtype=torch.float64)
    wanted = torch.zeros(len(places), dtype=torch.float64)
    for (y, x), row in places.items():
        for other in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= other[0] < height and 0 <= other[1] < width):
                continue
            matrix[row, row] += 1
            wanted[row] += made[y, x] - made[other]
            if other in places:
                matrix[row, places[other]] -= 1
            else:
                wanted[row] += picture[other]
    result = picture.double().clone()
    for place, value in zip(places, torch.linalg.solve(matrix, wanted), strict=True):
        result[place] = value
    return result


@pytest.mark.parametrize("scattered", [0.0, 0.3])
def test_the_poisson_equation_is_solved(scattered):
    torch.manual_seed(1)
    made, picture = torch.rand(2, 2, 24, 21), torch.rand(2, 2, 24, 21)
    mask = torch.rand(2, 1, 24, 21) < scattered  # many parts, at the border of the picture too
    mask[0, :, 3:20, 6:15], mask[1, :, 5:21, 4 : 21 if scattered else 12] = True, True
    result = poisson_blended(made, picture, mask)
    for sample in range(2):
        for channel in range(2):
            wanted = solved(made[sample, channel], picture[sample, channel], mask[sample, 0])
            assert (result[sample, channel] - wanted).abs().max() < 1e-3
    outside = ~mask.expand_as(result)
    assert torch.equal(result[outside], picture[outside])


def test_a_seam_between_two_brightnesses_goes():
    picture = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 6:26, 8:24] = True
    assert torch.allclose(poisson_blended(picture + 0.3, picture, mask), picture, atol=1e-3)
    both = torch.cat([picture, picture + 0.3])  # beside one without a seam, which is done at once
    blended = poisson_blended(both, picture.expand_as(both), mask.expand(2, -1, -1, -1))
    assert torch.allclose(blended, picture.expand_as(both), atol=1e-3)
    everywhere = torch.ones_like(mask)
    assert torch.equal(poisson_blended(picture + 0.3, picture, everywhere), picture + 0.3)


def test_pixels_outside_of_200_masks_are_bit_equal():
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        picture = torch.rand(1, 3, 24, 20, generator=generator)
        picture[0, 0, 0, :3] = torch.tensor([-0.0, 0.0, 1e-40])
        made = torch.rand(1, 3, 24, 20, generator=generator)
        mask = torch.rand(1, 1, 24, 20, generator=generator) < torch.rand(1, generator=generator)
        mask[..., 0, :3] = False
        compose = pasted if number % 2 else poisson_blended
        result = compose(made, picture, mask)
        outside = ~mask.expand_as(result)
        assert torch.equal(result[outside].view(torch.int32), picture[outside].view(torch.int32))
