"""What a CUDA graph holds besides operators: constants that the host hands over; what no graph waits for."""

import pytest
import torch
from torch import nn

from diffratio.routing import graphs


def test_what_the_host_hands_over_is_copied_once_for_each_value():
    """The device is that of tensors without values: `to` is a copy there."""
    constants, host = graphs._Constants("meta"), torch.arange(3.0)
    with constants:
        first, same = host.to("meta"), host.clone().to("meta")
        others = [(host + 1).to("meta"), host.to("meta", torch.float64), host.view(3, 1).to("meta")]
    assert len(constants.noted) == 4 and first is not same
    assert [(t.dtype, t.shape) for t in (same, *others)] == [
        (torch.float32, (3,)), (torch.float32, (3,)), (torch.float64, (3,)), (torch.float32, (3, 1)),
    ]  # fmt: skip


def test_what_was_handed_over_may_be_written_to():
    constants = graphs._Constants("cpu")
    for _ in range(2):
        with constants:
            given = torch.tensor([1, 2], device="cpu")
        assert given.tolist() == [1, 2]
        given += 1
    assert len(constants.noted) == 1


MASK, ROWS = torch.tensor([True, False, True]), torch.tensor([2, 0])
WAITS = {
    "a value": lambda x: x[0].item(),
    "a truth": lambda x: bool((x > 0).all()),
    "places": lambda x: x.nonzero(),
    "rows of a mask": lambda x: x[MASK],
    "into rows of a mask": lambda x: x.index_put_((MASK,), torch.ones(2)),
    "repeats": lambda x: x.repeat_interleave(ROWS.new_ones(3)),
}
GOES = {
    "rows": lambda x: x[ROWS],
    "into rows": lambda x: x.index_put_((ROWS,), torch.ones(2)),
    "one value by a mask": lambda x: x.index_put_((MASK,), torch.tensor(0.0)),
    "a copy": lambda x: x.copy_(torch.ones(3)),
    "another dtype": lambda x: x.to(torch.float64),
}


@pytest.mark.parametrize("name", [*WAITS, *GOES])
def test_what_waits_for_the_device_is_named(name):
    with graphs._Watched(nn.Linear(1, 1), "cpu"):
        if name in GOES:
            GOES[name](torch.zeros(3))
            return
        with pytest.raises(RuntimeError, match="no graph can hold Linear: its forward waits for values"):
            WAITS[name](torch.zeros(3))


def test_what_the_host_has_may_be_read():
    with graphs._Watched(nn.Linear(1, 1), "meta"):
        assert torch.ones(3)[MASK].sum().item() == 2
        with pytest.raises(RuntimeError, match="no graph can hold Linear"):
            torch.ones(3).to("meta")
