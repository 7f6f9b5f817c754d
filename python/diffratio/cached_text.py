"""Sampling with the text projected once: keys and values are the same in every step."""

from __future__ import annotations

from contextlib import contextmanager

from .integrations.model_text import ModelText, restore_caption
from .integrations.text_cache import TextCache
from .patch import plan_of, transformer_of


@contextmanager
def cache_text(model_or_pipe):
    """Inside, routed blocks project a text to keys and values once, and not in every call of the model.

    Outputs are bit-equal to those without. It serves calls without gradients, in eval mode, of blocks that
    run `mod_block`, eagerly (a compiled model projects in every call), for the last two texts. A text is
    known again by its tensor: the very memory, unchanged. It is projected anew when it, its mask or a weight
    changes in a way that torch counts: in place, `load_state_dict`, moves, casts, LoRA. What writes through
    `Tensor.data` (diffusers' EMAModel) or numpy is not counted: leave the context to do that. For tensors
    made under `torch.inference_mode` torch counts nothing, and such texts are projected in every call.

    A text's projections take `2 L B M D` elements (PixArt-Sigma in bf16, M=300: 39 MB per sample) until it is
    released, pushed out by two others, or the context is left. On a GPU, the values of a new text mask are
    waited for once.
    """
    model = transformer_of(model_or_pipe)
    plan = plan_of(model)
    if plan.text is not None:
        yield
        return
    restore_caption(model)  # a copy made inside of another context
    plan.text = ModelText(model)
    for state in plan.layers:
        state.text_cache = TextCache()
    try:
        yield
    finally:
        plan.text = None
        for state in plan.layers:
            state.text_cache = None
        restore_caption(model)
