"""Small models of the three systems, and a batch of ragged holes."""

import pytest
import torch

from diffratio.inpainting.lazy import LazyPixArt
from diffratio.inpainting.regenerate import regenerate_from_pixart


@pytest.fixture
def pixart(tiny):
    """Its layers all do something: some start at zero, behind which nothing can be seen."""
    model = tiny.pixart()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.fixture
def lazy(pixart):
    model = LazyPixArt.from_pixart(pixart, encoder_layers=2)
    model.fuse.weight.data.add_(0.1 * torch.randn(model.fuse.weight.shape))  # the context counts
    return model


@pytest.fixture
def wide(pixart):
    model = regenerate_from_pixart(pixart)
    model.pos_embed.proj.weight.data[:, 4:].normal_(std=0.1)
    return model


@pytest.fixture
def masks():
    """[3, 1, 16, 16] of 64 tokens each: 12, 64 and 3 of them."""
    masks = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    masks[0, :, 2:8, 4:11] = True
    masks[1] = True
    masks[2, :, 9:14, 15] = True
    return masks
