"""`activation`: what an MLP has between its products, times the router's score of each row where it is the
MLP of a parallel block. In training only what it was given is kept, not what it gave."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import ACTIVATIONS, Check
from ..._register import Operator, like_first, register
from ...types import Gated, Run


def _check(gate, value, index, logits, kind, score_scale):
    check = Check("activation")
    check.tensor("gate", gate, "T F")
    check.optional("value", value, "T F", dtype_of=("gate", gate))
    if (index is None) != (logits is None):
        check.fail("index and logits must be given together")
    if logits is not None:
        check.tensor("logits", logits, "B N")
        check.index(index, logits.numel())
    check.choice("kind", kind, ACTIVATIONS)
    check.positive("score_scale", score_scale)


def _bundled(gate, value, index, logits, kind, score_scale):
    return Gated(gate, value, kind, index, logits, score_scale)


def _launcher(backend, *arguments):
    return kernels("activation", backend).activation, (_bundled(*arguments),)


def _gradients(backend, kept, grad):
    _, value, _, logits, *_ = kept
    grads = torch.ops.diffratio.activation_backward(grad, *kept, backend=backend)
    known = zip(("gate", "value", "logits"), (grad, value, logits), grads, strict=True)
    return {name: found for name, given, found in known if given is not None}


def _backward(grad, *arguments, backend):
    found = kernels("activation", backend).activation_backward(grad, _bundled(*arguments))
    return tuple(grad.new_empty(0) if t is None else t for t in found)


def _fake_backward(grad, gate, value, index, logits, *_, backend):
    wide = torch.promote_types(gate.dtype, torch.float32)
    of_logits = grad.new_empty(0 if logits is None else logits.shape, dtype=wide)
    return gate.new_empty(gate.shape), gate.new_empty(0 if value is None else value.shape), of_logits


Operator(
    "activation(Tensor gate, Tensor? value=None, Tensor? index=None, Tensor? logits=None, *, "
    'str kind="gelu_tanh", float score_scale=1.0, str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
)
register(
    "activation_backward(Tensor grad, Tensor gate, Tensor? value, Tensor? index, Tensor? logits, str kind, "
    "float score_scale, *, str backend) -> (Tensor, Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)


def activation(
    gate: Tensor,
    value: Tensor | None = None,
    index: Tensor | None = None,
    logits: Tensor | None = None,
    *,
    kind: str = "gelu_tanh",
    score_scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """act(gate), act(gate) * value of a gated MLP, times score_scale * sigmoid(logit) of each row.

    Args:
        gate: [T, F], with any stride between rows.
        value: the same, in the dtype of gate: it makes SwiGLU of "silu" and GEGLU of the others.
        index: int64 [T], with logits: the rows of the flattened [B*N].
        logits: [B, N], of `route`. None: no scores.
        kind: "gelu_tanh", "gelu" or "silu".
        score_scale: as in `scatter_rescale`.
        backend: "auto", or exactly one of those that `capabilities()` lists for this operator.

    Returns:
        [T, F] in the dtype of gate.

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> gate, value = torch.randn(360, 2 * F).chunk(2, dim=1)
        >>> inner = activation(gate, value, kind="silu")  # SwiGLU, [360, F]
    """
    return torch.ops.diffratio.activation(
        gate, value, index, logits, kind=kind, score_scale=score_scale, backend=backend
    )


def run_activation(run: Run, given: Gated, out: Tensor | None = None) -> Tensor:
    """`activation` as blocks run it; without a gradient into `out`, which may be gate or value."""
    if run.direct:
        chosen = choose("activation", run.others, given.gate.device, given.gate.dtype)
        return kernels("activation", chosen).activation(given, out)
    operands = given.gate, given.value, given.index, given.logits
    how = {"kind": given.kind, "score_scale": given.score_scale, "backend": run.others}
    return torch.ops.diffratio.activation(*operands, **how)
