"""Sampling with the text projected once: keys and values are the same in every step."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import reduce

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection
from torch import Tensor, nn

from diffratio_kernels._autocast import autocast_is_on

from ..families.inspection import hooked, plain_linear
from ..families.text_mask import capturing
from .find import routed_model, transformer_of

KEPT_TEXTS = 2
"""A sampler that calls the model once with and once without its prompt alternates between two texts."""


class Texts:
    """What a model computes from its text alone, by the modules that compute it: for the last two texts.

    A tensor is told by its memory, which an entry keeps alive, and torch's count of its changes in place.
    What changes it uncounted (a merged adapter, diffusers' EMAModel, numpy) is seen by its norm."""

    def __init__(self):
        self._entries, self.called, self.asked = {}, False, False

    def __getstate__(self):
        """A copy of the model is outside of the context."""
        return self.__dict__ | {"_entries": None}

    def project(self, compute: Callable[[], Tensor], text: Tensor, *modules: nn.Module) -> Tensor:
        """`compute()`, or what it gave for this text before by the same weights of these modules."""
        self.asked = True
        return self.known(compute, text, *modules)

    def known(self, compute: Callable[[], Tensor], text: Tensor, *modules: nn.Module) -> Tensor:
        """`project` where it is no block that asks."""
        if self._entries is None or _not_now() or any(map(_foreign, modules)):
            return compute()
        tensors = [text, *(p for m in modules for p in m._parameters.values() if p is not None)]
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in tensors):
            return compute()
        autocast = torch.get_autocast_dtype(text.device.type) if autocast_is_on(text.device) else None
        stream = torch.cuda.current_stream(text.device) if text.is_cuda else None
        marks = [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in tensors]
        key, known = (autocast, stream, *marks), self._entries.get(modules, [])
        for other, _, value, version in known:
            if other == key and value._version == version:  # a hook may write into what it is given
                return value
        with torch.inference_mode(False), torch.no_grad():
            value, kept = compute(), [t.detach() for t in tensors]
            entry = key, (kept, _norms(kept)), value, value._version
        self._entries[modules] = [*[one for one in known if one[0] != key][1 - KEPT_TEXTS :], entry]
        return value

    def check(self) -> None:
        """At the start of a call of the model: on a GPU one wait for all."""
        if _not_now():
            return
        self.called = True
        entries = [entry for known in list(self._entries.values()) for entry in known]
        if entries:
            pairs = [(then, _norms(kept)) for _, (kept, then), *_ in entries]
            device = pairs[0][0].device
            then, now = (torch.cat([n.to(device) for n in norms]) for norms in zip(*pairs, strict=True))
            if not torch.equal(then, now):
                self.invalidate()

    def invalidate(self) -> None:
        """Forget everything."""
        self._entries = {}


class _Caption:
    """In place of the forward of what projects a model's text: blocks get the same memory in every step."""

    def __init__(self, module: PixArtAlphaTextProjection, texts: Texts):
        self._module, self._texts = module, texts

    def __call__(self, caption: Tensor) -> Tensor:
        module = self._module
        parts = module.linear_1, module.act_1, module.linear_2
        return self._texts.known(lambda: type(module).forward(module, caption), caption, *parts)


def _captions(model: nn.Module) -> list[nn.Module]:
    """What projects a model's text: PixArt's, LTX's and Allegro's; Wan's is inside of another module."""
    names = "caption_projection", "text_embedder"
    named = ((name.rpartition(".")[2], module) for name, module in model.named_modules())
    return [m for name, m in named if name in names and type(m) is PixArtAlphaTextProjection]


def _foreign(module: nn.Module) -> str | None:
    """Why a module may do more than a Linear or an activation, None where it does not."""
    return plain_linear(module) if module._parameters or module._modules else hooked(module)


def _norms(tensors: list[Tensor]) -> Tensor:
    """[len(tensors)], in float32 or wider: a change of a tensor is hardly without a change of its norm."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    with torch.no_grad():
        return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))


def _not_now() -> bool:
    """Not with gradients, while traced, or in a CUDA graph: a replay must read the text that it finds."""
    return torch.compiler.is_compiling() or torch.is_grad_enabled() or capturing()


@contextmanager
def cache_text(model_or_pipe):
    """Inside, routed blocks project a text to keys and values once, and not in every call of the model.

    Outputs are bit-equal to those without. It serves calls without gradients, eagerly, of blocks whose text
    projections are plain Linears, for the last two texts. A text is known again by its tensor: the very
    memory, unchanged. It is projected anew when it, a weight or a module changes (LoRA, PEFT's merges). What
    writes through `Tensor.data` (diffusers' EMAModel) or numpy is seen by the norms of texts and weights, so
    not a change that keeps all norms, like another order of the tokens. Of tensors made under
    `torch.inference_mode` torch counts no changes: such texts are projected in every call.

    A text's projections take `2 L B M D` elements (PixArt-Sigma in bf16, M=300: 39 MB per sample), and stay
    until they are pushed out by two others or the context is left. On a GPU, the values of a text mask and
    the norms are waited for once per call. In joint blocks the text is a stream that changes from block to
    block: nothing of it can be kept. Nor is a text kept that a model joins anew with an image in each call
    (Wan's image to video).

    Args:
        model_or_pipe: a routed model, or a pipeline with one.

    Yields:
        None.

    Raises:
        ValueError: the model is not routed.

    Warns:
        UserWarning: the model was called, and had nothing to keep.

    Example:
        >>> apply_diffratio(pipe, DiffRatioConfig(compression=0.3))  # or load_diffratio
        >>> with torch.no_grad(), cache_text(pipe):
        ...     image = pipe("a cat").images[0]
    """
    model = transformer_of(model_or_pipe)
    shared = routed_model(model, baseline=True)
    if shared.text is not None:
        yield
        return
    restore_caption(model)  # a copy made inside of another context
    texts = shared.text = Texts()
    for caption in _captions(model):
        if hooked(caption) is None:
            caption.forward = _Caption(caption, texts)
    try:
        yield
    finally:
        shared.text = None
        restore_caption(model)
    if texts.called and not texts.asked:
        name = type(model).__name__
        warnings.warn(f"cache_text: blocks of {name} project no text that stays the same", stacklevel=3)


def restore_caption(model: nn.Module) -> None:
    """Take off what `cache_text` put on the caption projection."""
    for caption in _captions(model):
        if isinstance(vars(caption).get("forward"), _Caption):
            del caption.forward
