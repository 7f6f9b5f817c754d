"""The router of one block: a linear score per token."""

import torch
from torch import Tensor, nn

STARTS = ("identity", "faithful")


class Router(nn.Module):
    """Parameters `router_weight` [D] and, on request, `router_bias` [1]; logits are computed in the ops.

    start "identity" (default): factor 2 * sigmoid(logit) with tiny weights (std 1e-3), so that a block that
    keeps every token starts as the pretrained block. "faithful": the authors' sigmoid(logit) and nn.Linear's
    initialisation, which halves every MLP branch at the start.
    """

    def __init__(self, width: int, *, start: str = "identity", bias: bool = False, device=None):
        super().__init__()
        if start not in STARTS:
            raise ValueError(f"Router: start={start!r} must be one of {STARTS}")
        self.start = start
        self.router_weight = nn.Parameter(torch.empty(width, dtype=torch.float32, device=device))
        self.router_bias = nn.Parameter(torch.zeros(1, dtype=torch.float32, device=device)) if bias else None
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the weights anew from torch's generator."""
        if self.start == "identity":
            nn.init.normal_(self.router_weight, std=1e-3)
        else:
            nn.init.uniform_(
                self.router_weight, -(self.router_weight.numel() ** -0.5), self.router_weight.numel() ** -0.5
            )
        if self.router_bias is not None:
            nn.init.zeros_(self.router_bias)

    def _apply(self, fn, recurse=True):
        """Draws what comes from the meta device (`to_empty`): it had no value there, and has none yet."""
        without_values = self.router_weight.is_meta
        super()._apply(fn, recurse)
        if without_values and not self.router_weight.is_meta:
            self.reset_parameters()
        return self

    @property
    def score_scale(self) -> float:
        """What sigmoid(logit) is multiplied by."""
        return 2.0 if self.start == "identity" else 1.0

    def forward(
        self,
        x: Tensor,
        keep: int | list[int],
        index: Tensor | None = None,
        keep_small: list[int] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, D] -> index [T], offsets [B+1], logits [B, N], as `torch.ops.diffratio.route`."""
        keep = [keep] if isinstance(keep, int) else keep
        return torch.ops.diffratio.route(
            x, self.router_weight, keep, router_bias=self.router_bias, index=index, keep_small=keep_small
        )

    def extra_repr(self) -> str:
        return f"{self.router_weight.numel()}, start={self.start!r}, bias={self.router_bias is not None}"
