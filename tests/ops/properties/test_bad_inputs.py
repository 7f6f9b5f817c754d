"""Every wrong argument is a ValueError or TypeError that names the operator and the argument."""

import math
import re
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import diffratio_kernels as dk
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase, two_bin_arguments

B, N, T = 2, 24, 10
BLOCK = {"seed": 0, "keep": (5,), "router_bias": True, "ragged_text": True}
MLP = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def calls():
    """Operator -> (valid arguments by name, pinned sizes by name of the tensor argument).

    Pinned: the dimensions in which one more or one less contradicts another argument.
    """
    block = ModBlockCase(**BLOCK).arguments()
    index = torch.tensor([0, 3, 4, 7, 9, 24, 30, 31, 40, 47])
    block["index"] = index
    x, modulation = block["x"], block["modulation"]
    shift, scale, gate = modulation.unbind(1)[:3]
    rows = torch.randn(T, 32)
    of_x = {"x": (2,), "router_weight": (0,), "router_bias": (0,), "index": (0,)}
    linears = {f"{name}_weight": (0, 1) for name in ("qkv", "out", "fc1", "fc2", "cross_q", "cross_out")}
    biases = {name.replace("weight", "bias"): (0,) for name in linears}
    text = {"context_kv": (0, 2, 3), "context_lengths": (0,)}
    of_block = of_x | {"x": (0, 2), "modulation": (0, 1, 2)} | linears | biases | text
    two_bins = two_bin_arguments(TwoBinCase(**BLOCK, keep_small=(4, 2)))
    two_bins["two_bin_block"]["index"] = two_bins["two_bin_blend"]["index"] = index
    bins = dict.fromkeys(("weight_large", "cu_seqlens_large", "cu_seqlens_small"), (0,))
    return {
        "route": (
            {name: block[name] for name in ("x", "router_weight", "keep", "router_bias", "index")},
            of_x,
        ),
        "gather_adaln": (
            {"x": x, "index": index, "shift": shift, "scale": scale, "eps": 1e-6},
            {"x": (0, 2), "index": (), "shift": (0, 1), "scale": (0, 1)},
        ),
        "adaln": (
            {"rows": rows, "index": index, "tokens": N, "shift": shift, "scale": scale, "eps": 1e-6},
            {"rows": (0, 1), "index": (0,), "shift": (0, 1), "scale": (0, 1)},
        ),
        "attention": (
            {
                "query": torch.randn(T, 2, 16),
                "key": torch.randn(7, 2, 16),
                "value": torch.randn(7, 2, 16),
                "cu_seqlens_q": torch.tensor([0, 4, 10], dtype=torch.int32),
                "cu_seqlens_k": torch.tensor([0, 5, 7], dtype=torch.int32),
                "max_seqlen_q": 6,
                "max_seqlen_k": 5,
                "key_lengths": torch.tensor([5, 0], dtype=torch.int32),
                "scale": 0.25,
            },
            {"query": (1, 2), "key": (0, 1, 2), "value": (0, 1, 2)}
            | {"cu_seqlens_q": (0,), "cu_seqlens_k": (0,), "key_lengths": (0,)},
        ),
        "gate_residual": (
            {"hidden": rows, "branch": rows, "gate": gate, "index": index, "tokens": N},
            {"hidden": (0, 1), "branch": (0, 1), "gate": (1,), "index": (0,)},
        ),
        "activation": (
            {"gate": rows, "value": rows, "index": index, "logits": x[..., 0], "score_scale": 2.0},
            {"gate": (0, 1), "value": (0, 1), "index": (0,), "logits": ()},
        ),
        "mlp": (
            {"rows": rows} | {name: block[name] for name in MLP},
            {"rows": (1,)} | {name: (0, 1) if "weight" in name else (0,) for name in MLP},
        ),
        "scatter_rescale": (
            {"x": x, "index": index, "hidden": rows, "branch": rows, "gate": gate, "logits": x[..., 0]},
            {"x": (0, 1, 2), "index": (0,)} | dict.fromkeys(("hidden", "branch", "gate", "logits"), (0, 1)),
        ),
        "mod_block": (block, of_block),
        "two_bin_gelu": (two_bins["two_bin_gelu"], {"pre": (0,), **bins}),
        "two_bin_blend": (
            two_bins["two_bin_blend"],
            {"x": (0, 1, 2), "index": (0,), **bins}
            | dict.fromkeys(("hidden", "branch", "gate", "logits"), (0, 1)),
        ),
        "two_bin_attention": (
            two_bins["two_bin_attention"] | {"scale": 0.25},
            dict.fromkeys(("query", "key", "value"), (0, 1, 2)) | dict.fromkeys([*bins][1:], (0,)),
        ),
        "two_bin_block": (two_bins["two_bin_block"], of_block | {"weight_large": (0,)}),
    }  # fmt: skip


VALID = {op: arguments for op, (arguments, _) in calls().items()}
OPTIONAL = {"router_bias", "value", "logits", "index", "key_lengths", "context_kv", "context_lengths"}


def tensor_faults(op, name, value, pinned):
    """(label, wrong value) for one tensor argument."""
    first = {
        "gate_residual": "hidden", "mlp": "rows", "attention": "query", "activation": "gate",
        "two_bin_gelu": "pre", "two_bin_attention": "query",
    }.get(op, "x")  # fmt: skip
    any_float = (first, "router_weight", "router_bias", "modulation", "gate", "logits", "weight_large")
    like_x = op not in ("route", "gather_adaln", "adaln") and name not in any_float
    wrong = {torch.int64: [torch.int32, torch.float32], torch.int32: [torch.int64, torch.float32]}.get(
        value.dtype,
        [torch.int64, torch.bool, torch.complex64] + ([torch.float64, torch.bfloat16] if like_x else []),
    )
    for dtype in wrong:
        yield f"dtype {str(dtype).removeprefix('torch.')}", value.to(dtype)
    yield "a dimension more", value[None]
    yield "a dimension less", value[0]
    for d in pinned:
        yield f"size {d} larger", torch.cat([value, value.narrow(d, 0, 1)], d)
        yield f"size {d} smaller", value.narrow(d, 0, value.shape[d] - 1)
    yield "on another device", value.to("meta")
    yield "sparse", value.to_sparse()
    if value.dim() > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls compressed rows a beta feature
            compressed = value.flatten(1).to_sparse_csr()
        yield "sparse rows", compressed
    if not (name in OPTIONAL or name.endswith("_bias")):
        yield "missing", None


NOT_POSITIVE = [0.0, -1.0, math.nan, math.inf]
BAD_INDEX = [[0] * T, [-1, *range(1, T)], [*range(T - 1), B * N], [0, *range(T - 1)]]
BAD_KEEP = [[-1], [N + 1], [5, -1], [N + 1, 0], [1, 2, 3], []]
BAD_BINS = {  # of samples of 5 rows, of which 4 and 2 are in the small bin
    "cu_seqlens_large": [[1, 5, T], [0, 5, T - 1], [0, 5, T + 1], [0, 11, T], [0, -1, T]],
    "cu_seqlens_small": [[1, 4, 6], [0, 4, 5], [0, 4, 7], [0, 8, 6], [0, -1, 6], [0, 6, 6], [0, 0, 6], [0]],
}
VALUES = {  # operator -> argument -> wrong values
    "route": {"keep": BAD_KEEP, "keep_small": [*BAD_KEEP, [6], [5, 6]]},
    "gather_adaln": {"eps": NOT_POSITIVE},
    "adaln": {"eps": NOT_POSITIVE, "tokens": [0, -1]},
    "gate_residual": {"tokens": [0, -1]},
    "activation": {
        "kind": ["tanh", "GELU", ""],
        "score_scale": NOT_POSITIVE,
        "index": [None],
        "logits": [None],
    },
    "mlp": {"activation": ["tanh", "GELU", ""]},
    "attention": {
        "scale": NOT_POSITIVE,
        "max_seqlen_q": [-1, 0, 4, 5, T + 1],
        "max_seqlen_k": [-1, 0, 3, 4, 8],
        "cu_seqlens_q": [[1, 4, T], [0, 4, T - 1], [0, 4, T + 1], [0, 11, T], [0, -1, T], [0, 3, T]],
        "cu_seqlens_k": [[1, 5, 7], [0, 5, 6], [0, 5, 8], [0, 8, 7], [0, -1, 7], [0, 1, 7], [0]],
        "key_lengths": [[-1, 0], [6, 0], [5, 3], [5, -2]],
    },
    "scatter_rescale": {"score_scale": NOT_POSITIVE, "rescale": ["MLP", "", "sigmoid"]},
    "mod_block": {
        "keep": BAD_KEEP,
        "num_heads": [0, -1, 3, 8, 32, 64],
        "rescale": ["MLP", "", "sigmoid"],
        "score_scale": NOT_POSITIVE,
        "eps": NOT_POSITIVE,
        "mlp_eps": NOT_POSITIVE,
        "context_lengths": [[-1, 0], [6, 0], [0, 100], [0, -5]],
        "attention": ["cpu", "torch", ""],
        **{name: [None] for name in ("context_kv", "cross_q_weight", "cross_out_weight")},
    },
    "two_bin_gelu": {"rows": [-1, 0, 9, 11, 17], **BAD_BINS},
    "two_bin_attention": {
        "scale": NOT_POSITIVE,
        "small": [-1, 0, 5, 7],
        "max_seqlen_large": [-1, 0, 4, 6],
        "max_seqlen_small": [-1, 0, 3, 5],
        **BAD_BINS,
    },
}
VALUES["two_bin_blend"] = VALUES["scatter_rescale"] | BAD_BINS
VALUES["two_bin_block"] = {name: wrong for name, wrong in VALUES["mod_block"].items() if name != "keep"} | {
    "keep_large": [*BAD_KEEP, [3], [5, 1]],
    "keep_small": [*BAD_KEEP, [6], [5, 6]],
    "forward_only": ["Small", "both", "small", "large"],
}


def cases():
    for op, (arguments, pinned) in calls().items():
        for name, sizes in pinned.items():
            for label, value in tensor_faults(op, name, arguments[name], sizes):
                yield op, name, label, {name: value}
        values = VALUES[op] | {"backend": ["cuda", "Native", ""]}
        values |= {"index": BAD_INDEX} if "index" in arguments else {}
        for name, wrong in values.items():
            for value in wrong:
                dtype = torch.int64 if name == "index" else torch.int32
                is_tensor = name in pinned and value is not None
                yield op, name, str(value), {name: torch.tensor(value, dtype=dtype) if is_tensor else value}
    for op in ("gather_adaln", "adaln", "scatter_rescale", "two_bin_blend"):
        for label, value in (("row 48", [48]), ("row -3", [-3])):
            yield op, "index", label, {"index": torch.tensor([*range(T - 1), *value])}
    text = {"context_kv": None, "context_lengths": None}
    weights = [name for name in VALID["mod_block"] if name.startswith("cross")]
    for op in ("mod_block", "two_bin_block"):
        for name in weights:  # weights of the cross-attention without its text
            yield op, name, "no text", text | {other: None for other in weights if other != name}
        yield op, "context_lengths", "no text", {"context_kv": None} | dict.fromkeys(weights)
    for op in ("attention", "two_bin_attention"):
        head_dim = {name: VALID[op][name][..., :12] for name in ("query", "key", "value")}
        yield op, "query", "head_dim 12", head_dim
        yield op, "query", "head_dim 0", {name: t[..., :0] for name, t in head_dim.items()}
        more = {name: VALID[op][name].repeat(1, 2, 1)[:, :3] for name in ("key", "value")}
        yield op, "key", "3 heads for 2", more
        yield op, "key", "no heads", {name: t[:, :0] for name, t in more.items()}
    of_samples = {"index": VALID["two_bin_blend"]["index"].flip(0)}  # each row once, but not by sample
    yield "two_bin_blend", "index", "other samples", of_samples
    yield "two_bin_block", "index", "other samples", of_samples


CASES = list(cases())


def error_of(function, arguments):
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**arguments)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("op", "name", "change"), [pytest.param(o, n, c, id=f"{o}-{n}-{label}") for o, n, label, c in CASES]
)
def test_a_wrong_argument_is_named(op, name, change):
    arguments = VALID[op] | change
    kind, text = error_of(getattr(dk, op), arguments)
    assert re.match(rf"{op}: .*\b{name}\b", text), text
    assert error_of(getattr(torch.ops.diffratio, op), arguments) == (kind, text)
    wants_gradient = {
        key: v.detach().requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for key, v in arguments.items()
    }
    assert error_of(getattr(dk, op), wants_gradient) == (kind, text)


UNREADABLE = [
    *(("two_bin_attention", "small", value) for value in (-1, T + 1)),
    *(
        ("two_bin_attention", name, value)
        for name in ("max_seqlen_large", "max_seqlen_small")
        for value in (-1, 2, 11)
    ),
    *(("two_bin_gelu", "rows", value) for value in (-1, 7, 17)),
]


@pytest.mark.parametrize(("op", "name", "value"), UNREADABLE)
def test_sizes_are_checked_where_offsets_cannot_be_read(op, name, value):
    """As on a GPU: fake tensors have no values."""
    with FakeTensorMode() as mode:
        fake = {n: mode.from_tensor(t) if isinstance(t, torch.Tensor) else t for n, t in VALID[op].items()}
        getattr(dk, op)(**fake)
        _, text = error_of(getattr(dk, op), fake | {name: value})
        assert re.match(rf"{op}: .*\b{name}\b", text), text


@pytest.mark.parametrize("op", VALID)
def test_the_same_call_without_the_fault_runs(op):
    getattr(dk, op)(**VALID[op])


def test_there_are_enough_cases():
    assert len(CASES) >= 800
    assert len({(op, name, label) for op, name, label, _ in CASES}) == len(CASES)
