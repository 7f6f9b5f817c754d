"""Names of test cases."""

import torch


def short(dtype):
    return str(dtype).removeprefix("torch.")


def case_id(value):
    return short(value) if isinstance(value, torch.dtype) else str(value)
