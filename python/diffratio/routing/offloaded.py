"""Where offloading keeps the parameters of a model's modules while it has taken them away.

accelerate leaves parameters on the meta device; diffusers' group offloading to disk leaves memory that nobody
has written. Neither holds a value: what is read there is an error or garbage, what is written there is lost.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ..families.inspection import group_of, held_by_accelerate


def offloading_of(block: nn.Module) -> str | None:
    """Which module of a block is offloaded, None where none is."""
    for name, module in block.named_modules():
        if held_by_accelerate(module) or group_of(module) is not None:
            return f"{name or 'it'} is offloaded"
    return None


def check_values(model: nn.Module, modules: Iterable[nn.Module], what: str) -> None:
    """A ValueError, with the remedy, unless the parameters of `modules` hold values that stay.

    what: the name of the modules in the error's text.
    """
    parts = [part for module in modules for part in module.modules()]
    label = f"model {type(model).__name__}: {what}"
    if _on_meta(parts) and any(map(held_by_accelerate, model.modules())):
        raise ValueError(
            f"{label} offloaded by accelerate; take the offloading off first "
            "(accelerate.hooks.remove_hook_from_submodules, a pipeline's remove_all_hooks)"
        )
    if _on_meta(parts):
        raise ValueError(
            f"{label} on the meta device, where nothing has a value; load the model's weights first "
            "(load_state_dict(..., assign=True), or to_empty and load_state_dict)"
        )
    if _disk_groups(model, parts):
        raise ValueError(
            f"{label} offloaded to disk by group offloading, which keeps no change; do this before "
            "enable_group_offload"
        )


@contextmanager
def fetched(model: nn.Module, modules: Iterable[nn.Module], what: str) -> Iterator[None]:
    """Inside, the parameters of `modules` hold their values, to be read: wherever offloading keeps them.

    A ValueError where there are none: on the meta device, without offloading.
    """
    parts = [part for module in modules for part in module.modules()]
    with ExitStack() as stack:
        for part in filter(held_by_accelerate, parts):
            from accelerate.utils import align_module_device

            stack.enter_context(align_module_device(part, "cpu"))
        for group in _disk_groups(model, parts):
            group.onload_()
            stack.callback(group.offload_)
        if _on_meta(parts):
            check_values(model, parts, what)
        yield


def _on_meta(modules: list[nn.Module]) -> bool:
    return any(parameter.is_meta for module in modules for parameter in module.parameters(recurse=False))


def _disk_groups(model: nn.Module, modules: list[nn.Module]) -> list:
    """The groups on disk that hold a parameter of `modules`."""
    groups = {id(group): group for module in model.modules() if (group := group_of(module)) is not None}
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    return [
        group
        for group in groups.values()
        if group.offload_to_disk_path is not None and any(p in group.tensor_to_key for p in parameters)
    ]
