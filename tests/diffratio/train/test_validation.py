"""Every held-out image counts once, in whatever order and company processes see it."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from diffratio.train.objective import validate
from diffratio.train.times import Timesteps


class Given:
    """The objective whose loss is written in the batch."""

    times = Timesteps(1000)

    def __call__(self, model, batch):
        return batch["error"]


def test_an_image_that_pads_the_last_batch_counts_once():
    """accelerate fills up the last batch with the first images, and a batch is sorted by timestep."""
    rows = [[0, 1, 2, 3], [0, 4, 1, 5]]
    batches = [
        {
            "row": torch.tensor(part),
            "error": 10.0 ** torch.tensor(part),
            "timestep": torch.tensor([100 * row for row in part]),
        }
        for part in rows
    ]
    found = validate(Accelerator(cpu=True), nn.Linear(1, 1), Given(), batches, regions=2)
    assert found["validation_loss"] == pytest.approx(111111 / 6)
    assert found["validation_by_region"] == pytest.approx([11111 / 5, 100000])
