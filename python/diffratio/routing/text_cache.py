"""Sampling with the text projected once: keys and values are the same in every step."""

from contextlib import contextmanager
from types import MethodType

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection
from torch import Tensor, nn

from ..families.inspection import hooked, plain_linear
from ..families.text_cache import TextCache, not_now
from .find import routed_layers, routed_model, transformer_of
from .state import RoutedModel


class _Watch:
    """The caches of a model, and whether what they were computed from has changed uncounted: by a merged
    adapter, diffusers' EMAModel or numpy."""

    def __init__(self, caches: list[TextCache]):
        self._caches = caches

    def check(self) -> None:
        """At the start of a call of the model: on a GPU one wait for all."""
        pairs = [] if not_now() else [pair for cache in self._caches for pair in cache.norms()]
        if not pairs:
            return
        device = pairs[0][0].device
        then, now = (torch.cat([n.to(device) for n in norms]) for norms in zip(*pairs, strict=True))
        if not torch.equal(then, now):
            self.invalidate()

    def invalidate(self) -> None:
        """Forget everything."""
        for cache in self._caches:
            cache.invalidate()


class _Caption:
    """Stands in for `forward` of a caption projection: with it the blocks are given the same memory in every
    step."""

    def __init__(self, module: PixArtAlphaTextProjection, shared: RoutedModel):
        self.module, self.shared, self.cache, self.act = module, shared, TextCache(), module.act_1

    def project(self, text: Tensor) -> Tensor:
        module, linears = self.module, (self.module.linear_1, self.module.linear_2)

        def compute() -> Tensor:
            return PixArtAlphaTextProjection.forward(module, text)

        ended = self.shared.text is None  # in a copy made inside of the context
        if ended or module.training or any(map(plain_linear, linears)) or hooked(module.act_1):
            return compute()
        if module.act_1 is not self.act:
            self.act = module.act_1
            self.cache.invalidate()
        weights = [p for linear in linears for p in (linear.weight, linear.bias) if p is not None]
        return self.cache(compute, text, *weights)


@contextmanager
def cache_text(model_or_pipe):
    """Inside, routed blocks project a text to keys and values once, and not in every call of the model.

    Outputs are bit-equal to those without. It serves calls without gradients, eagerly, of blocks whose text
    projections are plain Linears, for the last two texts. A text is known again by its tensor: the very
    memory, unchanged. It is projected anew when it, a weight or a module changes (LoRA, PEFT's merges). Torch
    counts changes in place, `load_state_dict`, moves and casts; what writes through `Tensor.data` (diffusers'
    EMAModel) or numpy is seen by the norms of texts and weights, so not a change that keeps all norms, like
    another order of the tokens. For tensors made under `torch.inference_mode` torch counts nothing: such
    texts are projected in every call.

    A text's projections take `2 L B M D` elements (PixArt-Sigma in bf16, M=300: 39 MB per sample), and stay
    until they are pushed out by two others or the context is left. On a GPU, the values of a text mask and
    the norms are waited for once per call.

    Args:
        model_or_pipe: a routed model, or a pipeline with one.

    Yields:
        None.

    Raises:
        ValueError: the model is not routed.

    Example:
        >>> apply_diffratio(pipe, DiffRatioConfig(compression=0.3))  # or load_diffratio
        >>> with torch.no_grad(), cache_text(pipe):
        ...     image = pipe("a cat").images[0]
    """
    model = transformer_of(model_or_pipe)
    shared = routed_model(model)
    if shared.text is not None:
        yield
        return
    restore_caption(model)  # a copy made inside of another context
    caches = [layer.text_cache for layer in routed_layers(model)]
    caption = model._modules.get("caption_projection")
    if type(caption) is PixArtAlphaTextProjection and hooked(caption) is None:
        stand_in = _Caption(caption, shared)
        caption.forward = MethodType(_Caption.project, stand_in)
        caches.append(stand_in.cache)
    shared.text = watch = _Watch(caches)
    try:
        yield
    finally:
        shared.text = None
        watch.invalidate()
        restore_caption(model)


def restore_caption(model: nn.Module) -> None:
    """Take off what `cache_text` put on the caption projection."""
    caption = model._modules.get("caption_projection")
    if caption is not None and getattr(vars(caption).get("forward"), "__func__", None) is _Caption.project:
        del caption.forward
