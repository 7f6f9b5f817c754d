"""A block of diffusers taken apart: what its modules were found to be, and which bundles of the routed block
their layers make."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from diffratio_kernels.blocks.stream import CrossAttention, Mlp, Rope, SelfAttention
from diffratio_kernels.types import Activation, Product, RowNorm

from .attention_modules import product_of
from .inspection import foreign_dropout
from .mlp_modules import Layers, taken_apart
from .norms import head_norm, row_norm


@dataclass(frozen=True, slots=True)
class Names:
    """What a module of diffusers calls the layers of an attention.

    Example:
        >>> names = Names("qkv", "proj", ("q_norm", "k_norm"))
    """

    project: str | tuple[str, str, str] = ("to_q", "to_k", "to_v")
    """Of query, key and value: joined, or each alone."""
    out: str | None = "to_out"
    norms: tuple[str, str] = ("norm_q", "norm_k")
    joined: str = "to_qkv"
    """What `fuse_qkv_projections` makes of `project`."""


OWN = Names()
ADDED = Names(
    ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", ("norm_added_q", "norm_added_k"), "to_added_qkv"
)
"""Of the layers that an attention has for a second stream."""


@dataclass(slots=True)
class Parts:
    """What a block's modules were found to be."""

    refused: str | None
    """Why the block cannot be routed as it is now."""
    raw: set[int] = field(default_factory=set)
    """ids of the Linears whose weights are all that they compute."""
    mlps: dict[int, Layers] = field(default_factory=dict)
    """ids of the MLPs that are two products around a known activation."""
    activations: dict[int, Activation] = field(default_factory=dict)
    """ids of the modules that are known activations."""
    norm_weights: set[int] = field(default_factory=set)
    """ids of the norms whose weights are all that they compute."""
    slow: str | None = None
    """The first Linear that is not raw, and why."""

    def product(self, module: nn.Module) -> Product:
        """A Linear's weights where they are the whole truth, else the module itself."""
        return product_of(module, id(module) in self.raw)

    def mlp(self, ff: nn.Module) -> Mlp | nn.Module:
        """The MLP by its products, or the module."""
        layers = self.mlps.get(id(ff))
        return ff if layers is None else taken_apart(ff, layers, self.product)

    def attention(
        self,
        attn: nn.Module,
        rope: Rope | None = None,
        names: Names | None = None,
        fused: bool = False,
        heads: int | None = None,
        **more,
    ) -> SelfAttention:
        """Attention by the layers of a module of diffusers.

        names: of its layers; None: `OWN`.
        fused: whether its processor calls the joined projection where `fuse_qkv_projections` made one.
        heads: where the module calls them otherwise.
        """
        names = OWN if names is None else names  # torch.compile takes no such default
        norms, project = self.norms(attn, *names.norms, more.get("across_heads", False)), names.project
        if fused and getattr(attn, "fused_projections", False) and hasattr(attn, names.joined):
            project = names.joined
        if isinstance(project, str):
            project = self.product(getattr(attn, project))
        else:
            project = tuple(self.product(getattr(attn, name)) for name in project)
        heads = attn.heads if heads is None else heads
        return SelfAttention(project, self.out(attn, names.out), heads, norms=norms, rope=rope, **more)

    def cross(
        self, attn: nn.Module, keys_values: Tensor, lengths: Tensor | None = None, **more
    ) -> CrossAttention:
        """Attention to a text by the layers of a module of diffusers, whose norms are across heads."""
        query, out, norm = self.product(attn.to_q), self.out(attn), self.row_norm(attn.norm_q)
        return CrossAttention(query, out, attn.heads, keys_values, lengths, query_norm=norm, **more)

    def norms(self, attn: nn.Module, of_query: str, of_key: str, across_heads: bool = False):
        """Norms of query and key: by their weights where these are the whole truth, else the modules; None
        where there are none."""
        query, key = (getattr(attn, name, None) for name in (of_query, of_key))
        if query is None:
            return None
        known = {id(query), id(key)} <= self.norm_weights and not isinstance(query, nn.Identity)
        if not known or query.eps != key.eps:
            return query, key
        return head_norm(query, key, across_heads)

    def row_norm(self, norm: nn.Module | None) -> RowNorm | nn.Module | None:
        """A norm of rows, as `norms` are: of a branch before its gate, or before a product."""
        if norm is None or id(norm) not in self.norm_weights:
            return norm
        return None if isinstance(norm, nn.Identity) else row_norm(norm)

    def out(self, attn: nn.Module, name: str | None = "to_out") -> Product | None:
        """The product behind an attention, None where it has none."""
        out = None if name is None else getattr(attn, name, None)
        if out is None or isinstance(out, nn.Linear) or not isinstance(out, nn.ModuleList):
            return None if out is None else self.product(out)
        drops = len(out) > 1 and foreign_dropout(out[1]) is not None
        return nn.Sequential(*out) if drops else self.product(out[0])
