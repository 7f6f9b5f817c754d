"""Hooks on modules of a block that is taken apart: they are called, or refused by name."""

import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio

from .cases import BLOCKS
from .cases.case import Holder
from .test_blocks import made, timesteps


@pytest.mark.parametrize("name", BLOCKS)
def test_no_hook_is_passed_over_in_silence(name):
    case = made(name)
    model, modules, seen = Holder(case.block, **case.model), dict(case.block.named_modules()), []

    def called(module, args, output):
        seen.append(module)

    with torch.no_grad():
        hooks = [module.register_forward_hook(called) for module in modules.values()]
        model.block(**case.inputs)
        for hook in hooks:
            hook.remove()
        dense = {name for name, module in modules.items() if name and module in seen}
        apply_diffratio(model, DiffRatioConfig(compression=0.0))
        refused = set()
        for name in dense:
            seen.clear()
            hook = modules[name].register_forward_hook(called)
            try:
                model(timesteps(model.block), case.inputs, **case.told)
            except ValueError as error:
                assert "it carries hooks" in str(error)
                refused.add(name)
            hook.remove()
            assert seen or name in refused, name
    assert refused and refused < dense
