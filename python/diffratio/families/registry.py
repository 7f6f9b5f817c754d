"""The contract between routing and a family of transformer blocks."""

import importlib
from typing import Any

from torch import nn

from diffratio_kernels.blocks.stream import Call

TIMESTEP_UNITS = {
    "training": (0.0, 1000.0),
    "noise": (0.0, 1.0),
    "clean": (1.0, 0.0),
    "reversed": (1000.0, 0.0),
}
"""The interval of a model's timesteps, the cleanest first: training timesteps 0..999, noise levels in [0, 1]
(flow families), what is left of the picture in [0, 1], the noise level from 1 (Z-Image, Lumina 2), or
training timesteps from 1000 (Mochi)."""


class Spec:
    """Subclass for a block class of your own and pass an instance to `register_block_spec`.

    Example:
        >>> class MyBlock(nn.Module):
        ...     pass  # norm1, q, k, v, out, heads, table, fc1, fc2
        >>> class MySpec(Spec):
        ...     def width(self, block):
        ...         return block.norm1.normalized_shape[0]
        ...
        ...     def bind(self, block, x, t):
        ...         attention = SelfAttention((block.q, block.k, block.v), block.out, block.heads)
        ...         modulation = (block.table + t).unflatten(-1, (6, -1))
        ...         return Call(Stream(x, modulation, attention, Mlp(block.fc1, block.fc2)))
        >>> register_block_spec(MyBlock, MySpec())
    """

    timestep_units: str = "training"
    """What the model is given as timestep: a name in `TIMESTEP_UNITS`."""
    path: str = "mod_block"
    """What `summary` calls the way of a block whose parts are all known."""
    timestep_name: str = "timestep"
    """What the model's forward calls it."""
    timesteps_of_tokens: bool = False
    """Whether a model's timesteps in one dimension are those of tokens, alike in all samples, and not one of
    each sample: the noisiest decides."""

    def width(self, block: nn.Module) -> int:
        """D."""
        raise NotImplementedError

    def bind(self, block: nn.Module, *args, **kwargs) -> Call | None:
        """One call of the block (its arguments, positional or by keyword) in the terms of the routed block;
        None where this call stays dense, as one that fills a cache of keys does.

        Parts that are `diffratio_kernels.types.Linear` may be fused; any other callable is called on packed
        rows [T, D]. A module that wants samples [b, k, D] is called through `by_count`."""
        raise NotImplementedError

    def unsupported_reason(self, block: nn.Module) -> str | None:
        """Why this block cannot be routed, None where it can."""
        return None

    def leave_dense(self, name: str, block: nn.Module) -> str | None:
        """Why a block of this class stays as it is (it sees text alone), None where it is routed."""
        return None

    def layout(self, model: nn.Module, given: dict[str, Any]) -> Any:
        """What only the model's call knows and `bind` needs: called once with the arguments of the model's
        forward, by name."""
        return None

    def inspect(self, block: nn.Module) -> Any:
        """What `bind` needs to know of the block's modules: called when the block is patched, and again only
        after a class, a forward, a hook or a module in it has changed. It is `inspected(block)` from then
        on."""
        return None

    def slow_reason(self, block: nn.Module) -> str | None:
        """Why inference does not run on raw weights alone, None where it does: what `summary` shows."""
        return "its spec gives no raw weights"

    def timestep(self, block: nn.Module, *args, **kwargs) -> Any:
        """The timestep that a call of the block is given, None where only the model knows it."""
        return None


def inspected(block: nn.Module) -> Any:
    """What `Spec.inspect` said of a patched block."""
    return vars(block)["_diffratio"].inspected


_specs: dict[type[nn.Module], tuple[Spec, Any]] = {}
"""Block class -> its spec, and the forward that the spec describes."""


def register_block_spec(cls: type[nn.Module], spec: Spec) -> None:
    """Teach `apply_diffratio` a block class; a class registered before is replaced.

    Args:
        cls: the class of the block. Subclasses are routed by this spec as long as they keep its forward.
        spec: an instance.

    Raises:
        TypeError: `cls` is no class of nn.Module, `spec` no instance of `Spec`.
        ValueError: unknown timestep_units.

    Example:
        >>> class MyBlock(nn.Module):
        ...     pass
        >>> register_block_spec(MyBlock, Spec())  # one whose `width` and `bind` are yours
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register_block_spec: cls must be a class of nn.Module, got {cls!r}")
    if not isinstance(spec, Spec):
        raise TypeError(f"register_block_spec: spec must be a Spec, got {type(spec).__name__}")
    if spec.timestep_units not in TIMESTEP_UNITS:
        raise ValueError(
            f"register_block_spec: timestep_units={spec.timestep_units!r} must be one of "
            f"{', '.join(map(repr, TIMESTEP_UNITS))}"
        )
    _specs[cls] = spec, cls.forward


FAMILIES = {
    "attention": ("basic_transformer", "sd3"),
    "auraflow_transformer_2d": ("auraflow",),
    "cogvideox_transformer_3d": ("cogvideox",),
    "consisid_transformer_3d": ("consisid",),
    "hunyuan_transformer_2d": ("hunyuan_dit",),
    "lumina_nextdit2d": ("lumina_next",),
    "transformer_allegro": ("allegro",),
    "transformer_anyflow": ("anyflow",),
    "transformer_bria": ("bria",),
    "transformer_bria_fibo": ("bria_fibo",),
    "transformer_bria_fibo2": ("bria_fibo2",),
    "transformer_chroma": ("chroma",),
    "transformer_chronoedit": ("chronoedit",),
    "transformer_cogview3plus": ("cogview3plus",),
    "transformer_cogview4": ("cogview4",),
    "transformer_cosmos": ("cosmos",),
    "transformer_easyanimate": ("easyanimate",),
    "transformer_ernie_image": ("ernie_image",),
    "transformer_flux": ("flux",),
    "transformer_flux2": ("flux2",),
    "transformer_flux3": ("flux3",),
    "transformer_glm_image": ("glm_image",),
    "transformer_helios": ("helios",),
    "transformer_hidream_image": ("hidream",),
    "transformer_hunyuan_video": ("hunyuan_video",),
    "transformer_hunyuan_video15": ("hunyuan_video15",),
    "transformer_hunyuanimage": ("hunyuanimage",),
    "transformer_ideogram4": ("ideogram4",),
    "transformer_joyimage": ("joyimage",),
    "transformer_joyimage_edit_plus": ("joyimage_edit_plus",),
    "transformer_kandinsky": ("kandinsky",),
    "transformer_krea2": ("krea2",),
    "transformer_longcat_image": ("longcat_image",),
    "transformer_ltx": ("ltx",),
    "transformer_ltx2": ("ltx2",),
    "transformer_lumina2": ("lumina2",),
    "transformer_minimax_h3": ("minimax_h3",),
    "transformer_mochi": ("mochi",),
    "transformer_motif_video": ("motif_video",),
    "transformer_nucleusmoe_image": ("nucleus_moe",),
    "transformer_ovis_image": ("ovis_image",),
    "transformer_prx": ("prx",),
    "transformer_qwenimage": ("qwen_image",),
    "transformer_qwenimage21": ("qwenimage21",),
    "transformer_sd3": ("sd3",),
    "transformer_skyreels_v2": ("skyreels_v2",),
    "transformer_wan": ("wan",),
    "transformer_wan_animate": ("wan_animate",),
    "transformer_wan_vace": ("wan_vace",),
    "transformer_z_image": ("z_image",),
}
"""Files of diffusers' blocks, by the last part of their name -> our files that register them, imported when a
model has such a block: no family costs those who do not use it, and older versions of diffusers miss some."""


def spec_for(block: nn.Module) -> Spec | None:
    """The spec of the block's class or of its nearest registered base class."""
    for cls in type(block).__mro__:
        package, _, file = cls.__module__.rpartition(".")
        if cls not in _specs and package.startswith("diffusers.models") and file in FAMILIES:
            for family in FAMILIES[file]:
                importlib.import_module(f".{family}", __package__)
        if cls in _specs:
            return _specs[cls][0]
    return None


def foreign_forward(block: nn.Module) -> str | None:
    """Why the block's class does not do what its spec describes, None where it does."""
    cls = next(cls for cls in type(block).__mro__ if cls in _specs)
    if type(block).forward is _specs[cls][1]:
        return None
    if type(block) is cls:
        return f"{cls.__name__}.forward was replaced"
    return f"its class {type(block).__name__} has a forward of its own, not that of {cls.__name__}"
