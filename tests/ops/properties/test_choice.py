"""What "auto" runs on a GPU: attention and products by ratios in a table, nothing that cannot run. No GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from diffratio.cli import doctor
from diffratio.routing import summary
from diffratio_kernels import _backends, _native
from diffratio_kernels._choice import KINDS, attention_choice, attention_choices, takes_ours
from diffratio_kernels._triton import tiles
from diffratio_kernels.ops.attention.op import choose_attention
from diffratio_kernels.ops.mlp.op import choose_mlp
from diffratio_kernels.ops.two_bin_attention.op import choose_two_bin_attention

GPU, HALF = torch.device("cuda"), torch.bfloat16


@pytest.fixture
def gpu(monkeypatch):
    """As on a GPU with every library; called with its compute capability, the table's ratios, and libraries
    that are not installed."""

    def of(capability=(9, 0), ratios=(), missing=(), products=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(_native, "cuda_unavailable", None)
        reasons = {name: "it is not installed" for name in missing}
        monkeypatch.setattr(_backends, "_missing", reasons.get)
        monkeypatch.setattr(tiles, "ATTENTION_RATIOS", list(ratios))
        if products is not None:
            monkeypatch.setattr(tiles, "PRODUCT_TILES", list(products))
        forget()

    def forget():
        for cached in (attention_choice, takes_ours, tiles.capability, tiles.nearest):
            cached.cache_clear()

    yield of
    monkeypatch.undo()
    forget()


def ratio(queries=512, keys=None, kind="self", source="measured", capability=90, **of):
    of = of or {"sdpa": 0.9}
    keys = queries if keys is None else keys
    return tiles.AttentionRatio(kind, capability, queries, keys, 72, of, source)


def like(rows, heads=16, head_dim=72, dtype=HALF):
    return SimpleNamespace(shape=(rows, heads, head_dim), dtype=dtype, device=GPU)


def chosen(queries=512, keys=None, samples=4, rows=None, lengths=None, gradient=False, heads=16, **query):
    """What "auto" takes for samples of so many queries and keys, `rows` packed."""
    keys, offsets = queries if keys is None else keys, torch.zeros(samples + 1)
    key_rows = samples * keys if keys != queries or rows is None else rows
    rows = samples * queries if rows is None else rows
    flat = offsets, offsets, queries, keys, lengths, None
    return choose_attention(
        "auto", like(rows, **query), like(key_rows, heads), None, *flat, gradient=gradient
    )


def chosen_two_bins(small=410, gradient=False, **query):
    offsets = torch.zeros(5)
    flat = offsets, offsets, 512, 410, 4 * small, None
    return choose_two_bin_attention("auto", like(4 * 512, **query), like(1), None, *flat, gradient=gradient)


def test_unmeasured_equal_samples_are_the_librarys_and_others_ours(gpu):
    gpu()
    assert chosen() == chosen(keys=300) == "sdpa"
    assert chosen(rows=1800) == chosen(keys=300, rows=1800) == "triton"
    assert chosen(keys=300, lengths=torch.zeros(4)) == chosen(lengths=torch.zeros(4)) == "triton"
    assert chosen_two_bins() == chosen_two_bins(small=400) == "triton"


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ({"sdpa": 0.99}, "triton"),
        ({"sdpa": 1.0}, "sdpa"),
        ({"sdpa": 0.7, "cudnn": 1.2, "varlen": 1.1}, "cudnn"),
        ({"sdpa": 0.7, "flash_attn": 1.3, "cudnn": 1.2}, "flash_attn"),
        ({"sdpa": 0.7, "varlen": 0.98, "cudnn": 0.8}, "triton"),
    ],
)
def test_the_best_of_what_was_measured_is_taken(of, expected, gpu):
    gpu(ratios=[ratio(**of)])
    assert chosen() == expected


@pytest.mark.parametrize(("of", "expected"), [(0.95, "sdpa"), (0.9, "sdpa"), (0.85, "triton")])
def test_a_prediction_needs_a_tenth(of, expected, gpu):
    gpu(ratios=[ratio(source="predicted", sdpa=of)])
    assert chosen() == expected


@pytest.mark.parametrize("other", [
    {"kind": "cross"}, {"kind": "ragged"}, {"capability": 100}, {"keys": 200},
    {"queries": 255}, {"queries": 1025},
])  # fmt: skip
def test_a_ratio_of_something_else_does_not_count(other, gpu):
    gpu(ratios=[ratio(**{"sdpa": 0.5} | other)])
    assert chosen() == "sdpa"


def test_a_ratio_is_not_one_of_shared_heads(gpu):
    gpu(ratios=[ratio(sdpa=0.5)])
    assert chosen() == "triton" and chosen(heads=4) == "sdpa"


def test_every_kind_has_its_own_ratios(gpu):
    won = {"sdpa": 0.5}
    for kind, call in {
        "self": chosen,
        "cross": lambda: chosen(keys=300),
        "ragged": lambda: chosen(keys=300, lengths=torch.zeros(4)),
    }.items():
        keys = 512 if kind == "self" else 300
        gpu(ratios=[ratio(keys=keys, kind=kind, **won)])
        assert call() == "triton", kind
        gpu(ratios=[ratio(keys=keys, kind=kind, sdpa=1.5)])
        assert call() == "sdpa", kind
    gpu(ratios=[ratio(keys=410, kind="two_bins", sdpa=1.5)])
    assert chosen_two_bins() == "sdpa" and chosen_two_bins(small=400) == "triton"


def test_gradients_have_the_same_bits_on_every_run(gpu):
    """Ours add them in one order; libraries do where ours cannot run."""
    gpu(ratios=[ratio(sdpa=1.5), ratio(keys=410, kind="two_bins", sdpa=1.5)])
    assert chosen(gradient=True) == chosen(4000, gradient=True) == chosen_two_bins(gradient=True) == "triton"
    assert chosen(gradient=True, head_dim=264) == chosen(gradient=True, dtype=torch.float32) == "sdpa"


@pytest.mark.parametrize(
    ("queries", "expected"),
    [(256, "cudnn"), (512, "cudnn"), (724, "cudnn"), (725, "triton"), (1024, "triton"), (2048, "triton"),
     (2049, "sdpa")],
)  # fmt: skip
def test_the_nearest_shape_within_a_factor_of_two_counts(queries, expected, gpu):
    gpu(ratios=[ratio(512, cudnn=1.2), ratio(1024, sdpa=0.8)])
    assert chosen(queries) == expected


def test_what_cannot_run_is_never_taken(gpu):
    fast = {"sdpa": 1.1, "cudnn": 1.4, "varlen": 1.3, "flash_attn": 1.2}
    ragged = [ratio(kind="ragged", **fast), ratio(keys=300, kind="ragged", **fast)]
    gpu(ratios=[ratio(**fast), *ragged])
    assert chosen() == "cudnn" and chosen(rows=1800) == "varlen"
    assert chosen(keys=300, lengths=torch.zeros(4)) == "sdpa"
    gpu(ratios=[ratio(**fast), *ragged], missing=("cudnn", "varlen"))
    assert chosen() == "flash_attn"
    for head_dim, best in {72: "cudnn", 136: "varlen", 264: "sdpa"}.items():
        gpu(ratios=[replace(ratio(**fast), head_dim=head_dim)])
        assert chosen(head_dim=head_dim) == best
    assert chosen(rows=1800, head_dim=264) == chosen_two_bins(head_dim=136) == "sdpa"
    assert chosen(rows=1800, head_dim=136) == chosen_two_bins(head_dim=128) == "triton"
    assert chosen(rows=1800, dtype=torch.float32) == chosen(rows=1800, dtype=torch.float64) == "sdpa"
    old = [replace(entry, architecture=75) for entry in (ratio(**fast), *ragged)]
    gpu(capability=(7, 5), ratios=old)
    assert chosen() == chosen(rows=1800) == chosen_two_bins() == "sdpa"
    assert _backends.choose("mod_block", "auto", GPU, torch.float16) == "reference"


def test_ours_missing_leaves_the_best_library(gpu, monkeypatch):
    gpu(ratios=[ratio(sdpa=0.5, cudnn=0.7)])
    monkeypatch.setattr("diffratio_kernels._triton.unavailable", "triton is not installed")
    assert chosen() == "cudnn" and chosen(rows=1800) == "sdpa"


def test_with_a_gradient_no_shape_is_asked(gpu):
    """A compiled graph is for any number of tokens."""
    gpu(ratios=[ratio(sdpa=1.5)])
    symbolic = object()  # neither counted nor compared
    offsets, narrow, wide = torch.zeros(5), like(8), like(8, head_dim=264)
    for rest in ((symbolic, symbolic, None, None), (symbolic, symbolic, symbolic, None)):
        choose = choose_attention if rest[2] is None else choose_two_bin_attention
        flat = None, offsets, offsets, *rest
        assert choose("auto", narrow, narrow, *flat, gradient=True) == "triton"
        assert choose("auto", wide, wide, *flat, gradient=True) == "sdpa"


def test_an_explicit_backend_stays(gpu):
    gpu(ratios=[ratio(sdpa=1.5)])
    flat = None, torch.zeros(5), torch.zeros(5), 512, 512, None, None
    assert choose_attention("triton", like(2048), like(2048), *flat) == "triton"


@pytest.mark.parametrize(
    ("source", "capability", "of_library", "ours"),
    [
        ("measured", (9, 0), 0.99, True), ("measured", (9, 0), 1.0, False),
        ("predicted", (9, 0), 0.95, False), ("predicted", (9, 0), 0.85, True),
        ("measured", (10, 0), 0.95, False), ("measured", (10, 0), 0.85, True),
    ],
)  # fmt: skip
def test_products_follow_the_table(source, capability, of_library, ours, gpu):
    entry = tiles.ProductTile("linear_gelu", 90, 8192, 4608, 1152, (1,), of_library, source)
    gpu(capability, products=[entry])
    rows, bias = SimpleNamespace(shape=(8192, 1152), dtype=HALF, device=GPU), torch.empty(4608)
    assert takes_ours("linear_gelu", HALF, GPU, 4608, 8192, 1152) is ours
    assert choose_mlp("auto", rows, bias, False) == ("triton" if ours else "cublaslt")
    assert choose_mlp("auto", rows, bias, True) == choose_mlp("auto", rows, None, False) == "triton"
    single = SimpleNamespace(shape=rows.shape, dtype=torch.float32, device=GPU)
    assert choose_mlp("auto", single, bias, False) == "reference"
    for far in ((4608, 4000, 1152), (9217, 8192, 1152), (4608, 8192, 2305)):
        assert not takes_ours("linear_gelu", HALF, GPU, *far)
    assert choose_mlp("auto", torch.empty(8192, 1152, dtype=HALF), bias, False) == "reference"


def test_reasons_say_what_was_measured(gpu):
    gpu(ratios=[ratio(sdpa=0.87), ratio(2048, sdpa=1.1, cudnn=1.2), ratio(capability=80)])
    found = {name: tuple(choice) for name, choice in attention_choices(GPU)}
    assert found == {
        "self, 512 x 512, heads of 72": ("triton", "measured 0.87 of sdpa on sm_90"),
        "self, 2048 x 2048, heads of 72": ("cudnn", "measured 1.20 of cudnn on sm_90"),
        "self, other shapes": ("sdpa", "not measured: the library's"),
        "cross, other shapes": ("sdpa", "not measured: the library's"),
        "ragged, other shapes": ("triton", "not measured: ours"),
        "two_bins, other shapes": ("triton", "not measured: ours"),
    }


def test_choices_are_looked_up_once_and_do_not_fill_memory(gpu):
    gpu(ratios=[ratio()])
    assert chosen() == chosen() == "triton"
    assert attention_choice.cache_info()[:2] == (1, 1)
    assert all(choice.cache_parameters()["maxsize"] for choice in (attention_choice, takes_ours))


def test_the_table_that_ships_knows_kinds_and_libraries():
    for entry in tiles.ATTENTION_RATIOS:
        assert entry.kind in KINDS and entry.source == "measured" and entry.on
        assert entry.of and set(entry.of) <= set(_backends.BACKENDS["attention"][1:-1])


def test_doctor_and_summary_say_what_attention_auto_takes(gpu, monkeypatch):
    gpu(ratios=[ratio(sdpa=0.87)])
    first, *others = doctor._attention()
    assert first == {
        "shapes": "self, 512 x 512, heads of 72", "backend": "triton",
        "reason": "measured 0.87 of sdpa on sm_90",
    }  # fmt: skip
    assert len(others) == len(KINDS)
    found = doctor.report() | {"gpus": ["NVIDIA H200"]}
    lines = doctor.lines(found | {"attention": [first]})
    assert "auto, self, 512 x 512, heads of 72 attention: triton (measured 0.87 of sdpa on sm_90)" in lines
    weight = SimpleNamespace(device=GPU, dtype=HALF, is_floating_point=lambda: True)
    block = SimpleNamespace(
        parameters=lambda: iter([weight]), attn1=SimpleNamespace(inner_dim=1152, heads=16)
    )
    assert summary._backend(block, True, (512, 4000)) == (
        "cuda rows, triton attention (measured 0.87 of sdpa on sm_90) or "
        "sdpa attention (not measured: the library's)"
    )
    assert summary._backend(block, True, ()) == "cuda rows, attention by the kept tokens"
    assert summary._backend(block, False, (512,)) == "cuda rows"
