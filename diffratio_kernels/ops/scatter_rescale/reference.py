"""`scatter_rescale` in eager PyTorch."""

from torch import Tensor

from ...types import Finish
from ..route.reference import accumulation_dtype


def scatter_rescale(given: Finish) -> Tensor:
    """Finish the kept rows and scatter them into a copy of x [B, N, D]; other rows stay as they are.

    With y = hidden + gate * branch, normed where it has a norm, and s = score_scale * sigmoid(logit), row i
    becomes
    "mlp": hidden + s * gate * branch; "residual": x_i + s * (y - x_i); "output": s * y; "none": y.
    hidden, branch [T, D]; gate [B, D] or [G, D]; logits [B, N].
    """
    x, rows, rescale = given.x, given.rows, given.rescale
    index, dtype = rows.index, accumulation_dtype(x.dtype)
    flat = x.reshape(-1, x.shape[2])
    score = (rescale.score_scale * given.logits.reshape(-1)[index].to(dtype).sigmoid())[:, None]
    branch = given.branch.to(dtype) if given.norm is None else given.norm(given.branch.to(dtype))
    update = given.gate.to(dtype)[rows.owner] * branch
    hidden = given.hidden.to(dtype)
    if rescale.mode == "mlp":
        finished = hidden + score * update
    elif rescale.mode == "residual":
        kept = flat[index].to(dtype)
        finished = kept + score * (hidden + update - kept)
    elif rescale.mode == "output":
        finished = score * (hidden + update)
    elif rescale.mode == "none":
        finished = hidden + update
    else:
        raise ValueError(f"rescale={rescale.mode!r} must be one of 'mlp', 'residual', 'output', 'none'")
    return flat.index_copy(0, index, finished.to(x.dtype)).reshape(x.shape)
