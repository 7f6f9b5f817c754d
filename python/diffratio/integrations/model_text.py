"""What `cache_text` puts on a model outside of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType

from diffusers.models.embeddings import PixArtAlphaTextProjection
from torch import Tensor, nn

from .spec import hooked, plain_linear
from .text_cache import TextCache, parameters_of, usable
from .text_mask import TextMask


@dataclass(eq=False)
class _Caption:
    """Stands in for `module.forward` of a caption projection."""

    module: PixArtAlphaTextProjection
    cache: TextCache | None


def _project_caption(caption: _Caption, text: Tensor) -> Tensor:
    module, cache = caption.module, caption.cache

    def project():
        return PixArtAlphaTextProjection.forward(module, text)

    linears = [module.linear_1, module.linear_2]
    if cache is None or not usable(module) or any(map(plain_linear, linears)) or hooked(module.act_1):
        return project()
    return cache(project, text, *parameters_of(linears))


class ModelText:
    """The caches of a model that lie outside of its blocks: of its text mask and its caption projection.

    With them the blocks are given the same memory in every step.
    """

    def __init__(self, model: nn.Module):
        self.mask = TextMask()
        self._caption = TextCache()
        caption = model._modules.get("caption_projection")
        if type(caption) is PixArtAlphaTextProjection and hooked(caption) is None:
            caption.forward = MethodType(_project_caption, _Caption(caption, self._caption))

    def __reduce__(self):
        return type(None), ()

    def clear(self) -> None:
        """Forget everything."""
        self.mask.cache.clear()
        self._caption.clear()


def restore_caption(model: nn.Module) -> None:
    """Take off what `ModelText` put on the caption projection."""
    caption = model._modules.get("caption_projection")
    if caption is not None and getattr(vars(caption).get("forward"), "__func__", None) is _project_caption:
        del caption.forward
