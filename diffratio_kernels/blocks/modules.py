"""A routed DiT block with parameters of its own, for people who write their own transformer."""

from torch import Tensor, nn

from .mod_block import mod_block
from .router import Router
from .two_bin_block import two_bin_block


class ModBlock(nn.Module):
    """adaLN block with a router (paper section 3.2): self-attention, optional text cross-attention, MLP.

    width D must be num_heads times a multiple of 8. `context_width` is the width of the text tokens,
    None for a block without cross-attention. `start` as in `Router`, `rescale` as in `scatter_rescale`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_width: int | None = None,
        mlp_ratio: float = 4.0,
        rescale: str = "mlp",
        start: str = "identity",
        eps: float = 1e-6,
        device=None,
        dtype=None,
    ):
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.num_heads, self.rescale, self.eps = num_heads, rescale, eps
        self.router = Router(width, start=start, device=device)
        self.qkv = nn.Linear(width, 3 * width, **options)
        self.out = nn.Linear(width, width, **options)
        self.fc1 = nn.Linear(width, int(mlp_ratio * width), **options)
        self.fc2 = nn.Linear(int(mlp_ratio * width), width, **options)
        if context_width is not None:
            self.cross_q = nn.Linear(width, width, **options)
            self.cross_kv = nn.Linear(context_width, 2 * width, **options)
            self.cross_out = nn.Linear(width, width, **options)

    def project_context(self, context: Tensor) -> Tensor:
        """Text tokens [B, M, context_width] -> keys and values [B, M, 2, D]: constant over timesteps."""
        return self.cross_kv(context).unflatten(-1, (2, -1))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        keep: int | list[int],
        context_kv: Tensor | None = None,
        context_lengths: Tensor | None = None,
    ) -> Tensor:
        """x [B, N, D], modulation [B, 6, D] -> [B, N, D]; arguments as in `torch.ops.diffratio.mod_block`."""
        return mod_block(
            x,
            self.router.router_weight,
            keep,
            modulation,
            **self._arguments(context_kv, context_lengths),
        )

    def two_bins(
        self,
        x: Tensor,
        modulation: Tensor,
        keep_small: int | list[int],
        keep_large: int | list[int],
        weight_large: Tensor,
        context_kv: Tensor | None = None,
        context_lengths: Tensor | None = None,
    ) -> Tensor:
        """Two bins blended, for a ratio that is learned: `torch.ops.diffratio.two_bin_block`."""
        return two_bin_block(
            x,
            self.router.router_weight,
            keep_small,
            keep_large,
            weight_large,
            modulation,
            **self._arguments(context_kv, context_lengths),
        )

    def _arguments(self, context_kv: Tensor | None, context_lengths: Tensor | None) -> dict:
        text = {"context_kv": context_kv, "context_lengths": context_lengths}
        crosses = hasattr(self, "cross_q")
        for name, given in text.items():
            if given is not None and not crosses:
                raise ValueError(f"ModBlock: {name} must not be given to a block without cross-attention")
        if crosses and context_kv is None:
            raise ValueError("ModBlock: context_kv must be given to a block with cross-attention")
        found = text | {"num_heads": self.num_heads, "rescale": self.rescale, "eps": self.eps}
        for name in ("qkv", "out", "fc1", "fc2", *(("cross_q", "cross_out") if crosses else ())):
            linear = getattr(self, name)
            found |= {f"{name}_weight": linear.weight, f"{name}_bias": linear.bias}
        return found | {"score_scale": self.router.score_scale}
