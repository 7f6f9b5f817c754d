"""`mlp`: two products around an activation; in training only what it was given is kept, not what it gave."""

import torch
from torch import Tensor

from ..._backends import choose, kernels
from ..._checks import ACTIVATIONS, Check
from ..._choice import takes_ours
from ..._register import Operator, empty_gradients, like_first, register
from ...types import Activation, Linear, Product, Run


def _check(rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation):
    check = Check("mlp")
    like_rows = {"dtype_of": ("rows", rows)}
    check.tensor("rows", rows, "T D")
    check.tensor("fc1_weight", fc1_weight, "F D", **like_rows)
    check.optional("fc1_bias", fc1_bias, "F", **like_rows)
    check.tensor("fc2_weight", fc2_weight, "D F", **like_rows)
    check.optional("fc2_bias", fc2_bias, "D", **like_rows)
    check.choice("activation", activation, ACTIVATIONS)


def choose_mlp(
    backend: str, rows: Tensor, fc1_bias: Tensor | None, gradient: bool, activation: str = "gelu_tanh"
) -> str:
    """The backend for these arguments: cuBLASLt's epilogue needs a bias, gives no gradient, has one
    activation. With a gradient ours is chosen for its memory."""
    reason = "gives no gradient" if gradient else "needs fc1_bias" if fc1_bias is None else None
    if activation != "gelu_tanh":
        reason = f"has no {activation}"
    if backend == "cublaslt" and reason:
        raise ValueError(f"mlp: backend='cublaslt' {reason}")
    by_table = backend == "auto" and rows.device.type == "cuda" and not reason
    if by_table and takes_ours("linear_gelu", rows.dtype, rows.device, fc1_bias.shape[0], *rows.shape):
        backend = "triton"
    return choose("mlp", backend, rows.device, rows.dtype, "cublaslt" if reason else None)


def _chosen(backend, rows, _, fc1_bias, *others, gradient):
    return choose_mlp(backend, rows, fc1_bias, gradient, others[-1])


def _launcher(backend, rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation):
    first, fc1, fc2 = (
        kernels("mlp", backend).linear_gelu,
        Linear(fc1_weight, fc1_bias),
        Linear(fc2_weight, fc2_bias),
    )
    return _two_products, (first, rows, fc1, fc2, activation)


def _two_products(linear_gelu, rows, fc1, fc2, kind):
    return fc2(linear_gelu(rows, fc1, kind=kind))


def _train(_, rows, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation):
    inner, pre = torch.ops.diffratio.linear_gelu(rows, fc1_weight, fc1_bias, activation)
    biases = fc1_bias is not None, fc2_bias is not None
    return Linear(fc2_weight, fc2_bias)(inner), (rows, pre, fc1_weight, fc2_weight, *biases, activation)


def _gradients(_, kept, grad_out):
    rows, pre, fc1_weight, fc2_weight, fc1_bias, fc2_bias, activation = kept
    grad_pre, inner = torch.ops.diffratio.linear_gelu_backward(grad_out, fc2_weight, pre, activation)
    return {
        "rows": grad_pre @ fc1_weight,
        "fc1_weight": grad_pre.t() @ rows,
        "fc1_bias": grad_pre.sum(0) if fc1_bias else None,
        "fc2_weight": grad_out.t() @ inner,
        "fc2_bias": grad_out.sum(0) if fc2_bias else None,
    }


def _linear_gelu(rows, weight, bias, kind):
    pre = torch.empty(rows.shape[0], weight.shape[0], dtype=rows.dtype, device=rows.device)
    return kernels("mlp", "triton").linear_gelu(rows, Linear(weight, bias), pre=pre, kind=kind), pre


def _linear_gelu_backward(grad, weight, pre, kind):
    return kernels("mlp", "triton").linear_gelu_backward(grad, weight, pre, kind)


def _fake_linear_gelu(rows, weight, bias, kind):
    inner = rows.new_empty(rows.shape[0], weight.shape[0])
    return inner, torch.empty_like(inner)


def _fake_linear_gelu_backward(grad, weight, pre, kind):
    return empty_gradients(pre, pre)


Operator(
    "mlp(Tensor rows, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, *, "
    'str activation="gelu_tanh", str backend="auto") -> Tensor',
    check=_check,
    launcher=_launcher,
    fake=like_first,
    gradients=_gradients,
    train=_train,
    chosen=_chosen,
    cast=("rows", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"),
)
register(
    "linear_gelu(Tensor rows, Tensor weight, Tensor? bias, str kind) -> (Tensor, Tensor)",
    kernel=_linear_gelu,
    fake=_fake_linear_gelu,
)
register(
    "linear_gelu_backward(Tensor grad, Tensor weight, Tensor pre, str kind) -> (Tensor, Tensor)",
    kernel=_linear_gelu_backward,
    fake=_fake_linear_gelu_backward,
)


def mlp(
    rows: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    activation: str = "gelu_tanh",
    backend: str = "auto",
) -> Tensor:
    """fc2(act(fc1(rows))). A gated MLP is a product, `activation` and a product.

    Args:
        rows: [T, D].
        fc1_weight, fc1_bias: [F, D] and [F] or None, in the dtype of rows.
        fc2_weight, fc2_bias: [D, F] and [D] or None, in the dtype of rows.
        activation: "gelu_tanh", "gelu" or "silu".
        backend: "auto", "cublaslt" (fp16 and bf16; needs fc1_bias and "gelu_tanh", gives no gradient),
            "triton" or "reference".

    Returns:
        [T, D].

    Raises:
        ValueError, TypeError: a bad argument, by its name, or a backend that cannot run here.

    Example:
        >>> branch = mlp(rows, fc1, None, fc2, None)
    """
    weights = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    return torch.ops.diffratio.mlp(rows, *weights, activation=activation, backend=backend)


def run_mlp_takes(run: Run, rows: Tensor, fc1: Product, fc2: Product, activation: Activation) -> bool:
    """Whether a block's MLP runs as one operator where autograd looks: raw weights, on the Triton kernels."""
    raw = isinstance(fc1, Linear) and isinstance(fc2, Linear) and activation.gate is None
    return raw and choose_mlp(run.others, rows, fc1.bias, gradient=True) == "triton"


def run_mlp(rows: Tensor, fc1: Linear, fc2: Linear, activation: Activation) -> Tensor:
    """`mlp` as blocks run it where autograd looks."""
    weights = fc1.weight, fc1.bias, fc2.weight, fc2.bias
    return torch.ops.diffratio.mlp(rows, *weights, activation=activation.kind, backend="triton")
