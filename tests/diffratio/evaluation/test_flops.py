"""The FLOP counts against torch's own counter, a module-hook counter and the paper's printed column."""

import json
from dataclasses import replace

import pytest
import torch
import typer
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from diffratio.cli.flops import flops
from diffratio.evaluation.flops import (
    PRESETS,
    TransformerShape,
    block_flops,
    dsap_kept,
    rows,
    transformer_flops,
)
from diffratio_kernels import kept_tokens

TEXT = 7
SMALL = {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8}
CAPTIONED = {"cross_attention_dim": 24, "caption_channels": 20, "in_channels": 3, "out_channels": 5}


def small_pixart(**overrides):
    return PixArtTransformer2DModel(**{**SMALL, **CAPTIONED, **overrides}).eval()


def small_dit():
    return DiTTransformer2DModel(**SMALL, num_embeds_ada_norm=10).eval()


def text_of(model):
    return TEXT if isinstance(model, PixArtTransformer2DModel) else 0


def run(model, batch, height=8, width=8, text=TEXT):
    device = next(model.parameters()).device
    latent = torch.zeros(batch, model.config.in_channels, height, width, device=device)
    time = torch.full((batch,), 500, device=device)
    if isinstance(model, DiTTransformer2DModel):
        return model(latent, time, class_labels=torch.zeros_like(time))
    sizes = None
    if model.use_additional_conditions:
        sizes = {"resolution": latent.new_ones(batch, 2), "aspect_ratio": latent.new_ones(batch, 1)}
    channels = model.config.caption_channels or model.config.cross_attention_dim
    return model(latent, latent.new_zeros(batch, text, channels), time, added_cond_kwargs=sizes)


def torch_count(call):
    """FLOPs by torch's counter. It does not know the CPU's fused attention, so attention runs as matmuls."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def thop_count(model, call):
    """MACs by thop's rules for the modules that these models hold, one forward of `call`."""
    macs = 0

    def hook(module, inputs, output):
        nonlocal macs
        if isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features
        elif isinstance(module, nn.Conv2d):
            macs += output.numel() * module.weight[0].numel()
        else:
            macs += 2 * inputs[0].numel()

    counted = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.LayerNorm))]
    handles = [m.register_forward_hook(hook) for m in counted]
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return macs


def route(block, kept):
    """Make a block run on its `kept` best tokens only; 0 bypasses it."""
    dense, channels = block.forward, block.attn1.to_q.in_features
    block.router = nn.Linear(channels, 1, bias=False)

    def forward(x, **kwargs):
        if kept == 0:
            return x
        index = block.router(x).topk(kept, dim=1).indices.expand(-1, -1, channels)
        return x.scatter(1, index, dense(x.gather(1, index), **kwargs))

    block.forward = forward


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (small_pixart, (8, 8)),
        (small_pixart, (4, 12)),
        (lambda: small_pixart(use_additional_conditions=True), (8, 8)),
        (lambda: small_pixart(sample_size=128), (8, 8)),
        (lambda: small_pixart(cross_attention_dim=20, caption_channels=None), (8, 8)),
        (small_dit, (8, 8)),
    ],
    ids=["pixart", "oblong", "size-conditions", "size-conditions-by-default", "raw-text", "dit"],
)
def test_dense_counts_match_torch_and_thop(make, size):
    model = make()
    shape = TransformerShape.from_model(model, *size, text_of(model))
    report = transformer_flops(shape, batch=2)
    assert report.total == torch_count(lambda: run(model, 2, *size))
    assert report.macs * 2 == report.total
    paper = transformer_flops(shape, batch=2, convention="paper")
    assert paper.total == 2 * thop_count(model, lambda: run(model, 2, *size))


@pytest.mark.parametrize("make", [small_pixart, small_dit])
@pytest.mark.parametrize("kept", [[16, 9, 1], [5, 0, 16], [0, 0, 0]])
def test_mod_counts_match_torch_and_thop(make, kept):
    model = make()
    shape = TransformerShape.from_model(model, text_tokens=text_of(model))
    for block, count in zip(model.transformer_blocks, kept, strict=True):
        route(block, count)
    assert transformer_flops(shape, kept, batch=3).total == torch_count(lambda: run(model, 3))
    paper = transformer_flops(shape, kept, batch=3, convention="paper")
    assert paper.total == 2 * thop_count(model, lambda: run(model, 3))


def test_a_table_gives_the_mean_over_its_regions():
    shape = TransformerShape.from_model(small_pixart(), text_tokens=TEXT)
    early, late = transformer_flops(shape, [16, 12, 3]), transformer_flops(shape, [4, 0, 8])
    both = transformer_flops(shape, [[16, 4], [12, 0], [3, 8]])
    assert both.total == (early.total + late.total) / 2
    assert transformer_flops(shape, 9).parts == transformer_flops(shape, [[9, 9]] * 3).parts


def test_block_flops_match_torch():
    block = small_pixart().transformer_blocks[0]
    text, time = torch.zeros(1, TEXT, 24), torch.zeros(1, 6 * 24)

    def call(rows):
        return block(torch.zeros(1, rows, 24), encoder_hidden_states=text, timestep=time)

    shape, router, text_kv = TransformerShape(1, 24, 1, 16, TEXT), 2 * 16 * 24, 2 * 2 * 24 * 24 * TEXT
    assert block_flops(shape, None, cache_text_kv=False).total() == torch_count(lambda: call(16))
    assert block_flops(shape, 10, cache_text_kv=False).total() == torch_count(lambda: call(10)) + router
    assert block_flops(shape, 10).total() == torch_count(lambda: call(10)) + router - text_kv
    assert block_flops(shape, 0).total() == 0


def test_cached_text_keys_and_values_are_all_that_caching_saves():
    shape = PRESETS["pixart-xl-512"]
    plain, cached = transformer_flops(shape, 512), transformer_flops(shape, 512, cache_text_kv=True)
    assert cached.parts == {part: value for part, value in plain.parts.items() if part != "text_kv"}
    assert plain.parts["text_kv"] == 2 * 28 * 2 * 1152**2 * 120


@pytest.mark.parametrize(
    ("model_class", "config", "latent", "preset"),
    [
        (PixArtTransformer2DModel, {"caption_channels": 4096}, 64, PRESETS["pixart-xl-512"]),
        (DiTTransformer2DModel, {}, 32, PRESETS["dit-xl-256"]),
        (DiTTransformer2DModel, {"out_channels": 8}, 64, PRESETS["dit-xl-512"]),
    ],
)
def test_presets_are_the_full_size_models(model_class, config, latent, preset):
    with torch.device("meta"):
        model = model_class(sample_size=latent, **{"out_channels": 8, **config}).eval()
    shape = TransformerShape.from_model(model, text_tokens=120 if "caption_channels" in config else 0)
    assert transformer_flops(shape) == transformer_flops(preset)
    assert transformer_flops(shape).total == torch_count(lambda: run(model, 1, latent, latent, 120))


def test_dit_agrees_with_its_own_publication():
    """119 and 525 "Gflops" (GMACs) in the model table of the authors' repository, facebookresearch/DiT."""
    for preset, gmacs in ((PRESETS["dit-xl-256"], 119), (PRESETS["dit-xl-512"], 525)):
        assert round(transformer_flops(preset).macs / 1e9) == gmacs


def test_published_rows():
    table = {(row.name, row.compression): row for row in rows()}
    statuses = {key: row.status for key, row in table.items()}
    assert statuses == {
        ("PixArt", "0 %"): "exact",
        ("ToMe", "10 %"): "exact",
        ("ToMe", "20 %"): "exact",
        ("AT-EDM", "20 %"): "plausible",
        ("MoD", "20 %"): "exact",
        ("DiffRatio-L", "20 %"): "fitted",
        ("DiffRatio-LT", "20 %"): "fitted",
    }
    for row in table.values():
        if row.status == "exact":
            assert [f"{value:.1f}" for value in row.ours] == [f"{value:.1f}" for value in row.published]
    assert table["AT-EDM", "20 %"].ours[1] == pytest.approx(121061.2, rel=1.4e-6)
    # The totals that the learned rows imply: 5710 tokens removed per forward, 22907 over four regions.
    assert table["DiffRatio-L", "20 %"].note.startswith(f"{28 * 1024 - 5710} tokens")
    assert table["DiffRatio-LT", "20 %"].note.startswith(f"{112 * 1024 - 22907} tokens")
    assert table["MoD", "20 %"].true_saving == pytest.approx(0.2145, abs=5e-5)


def test_paper_sum_by_part():
    """The parts of the dense count, GMAC per sample, as printed in the derivation of Table 1's column."""
    report = transformer_flops(PRESETS["pixart-xl-512"], convention="paper")
    parts = {part: round(flops / 2e9, 6) for part, flops in report.parts.items()}
    blocks = sum(report.parts[p] for p in ("qkv", "attention_out", "cross_q", "cross_out", "mlp")) / 2e9
    assert round(blocks, 6) == 532.710162
    expected = {
        "text_kv": 8.918139,
        "caption": 0.725484,
        "conditioning": 0.009585,
        "patch_embedding": 0.018874,
        "output": 0.037749,
        "norms": 0.134480,
    }
    assert {part: parts[part] for part in expected} == expected
    assert round(report.macs / 1e9, 6) == 542.554472


@pytest.mark.parametrize(
    ("tokens", "total", "ratios"),
    [
        (256, 11.8, (0.90, 0.70, 0.49, 0.29)),
        (1024, 45.9, (0.89, 0.68, 0.47, 0.28)),
        (4096, 236.8, (0.87, 0.63, 0.42, 0.23)),
        (16384, 1870, (0.84, 0.56, 0.33, 0.16)),
    ],
)
def test_block_ratios_by_hand(tokens, total, ratios):
    """28 D^2 per token, 4 k^2 D, 4 k M D and 4 M D^2 at D = 1152, M = 300, worked out by hand."""
    shape = TransformerShape(1, 1152, 1, tokens, 300)
    assert block_flops(shape, None, cache_text_kv=False).total() / 1e9 == pytest.approx(total, rel=4e-3)
    dense = block_flops(shape, None).total()
    for tenths, ratio in zip((9, 7, 5, 3), ratios, strict=True):
        sparse = block_flops(shape, kept_tokens(tenths, tokens)).total()
        assert sparse / dense == pytest.approx(ratio, abs=0.0055)


PIXART = PRESETS["pixart-xl-512"]
PIXART_CONFIG = {"_class_name": "PixArtTransformer2DModel"}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: transformer_flops(PIXART, 1025), "kept"),
        (lambda: transformer_flops(PIXART, -1), "kept"),
        (lambda: transformer_flops(PIXART, 0.7), "kept"),
        (lambda: transformer_flops(PIXART, [512] * 27), "kept"),
        (lambda: transformer_flops(PIXART, [[512, 3]] * 27 + [[512]]), "kept"),
        (lambda: transformer_flops(PIXART, [[]] * 28), "kept"),
        (lambda: transformer_flops(PIXART, 255, method="tome"), "kept"),
        (lambda: transformer_flops(PIXART, 0, method="atedm"), "kept"),
        (lambda: transformer_flops(PIXART, 9, method="dense"), "method"),
        (lambda: transformer_flops(PIXART, 9, method="magic"), "method"),
        (lambda: transformer_flops(PIXART, convention="thop"), "convention"),
        (lambda: transformer_flops(PIXART, batch=0), "batch"),
        (lambda: block_flops(TransformerShape(1, 24, 1, 16), 17).total(), "kept"),
        (lambda: TransformerShape(1, 24, 1, 16, -1), "text_tokens"),
        (lambda: TransformerShape(1, 24, 1, 0, 7), "tokens"),
        (lambda: TransformerShape(1, 24, 1, 16, mlp_ratio=0), "mlp_ratio"),
        (lambda: PIXART.resized(63, 64), "height"),
        (lambda: PIXART.resized(64, 0), "width"),
        (lambda: TransformerShape(1, 24, 5, 16), "heads"),
        (lambda: TransformerShape(0, 24, 3, 16), "layers"),
        (lambda: TransformerShape(1, 24, 3, 16, 7, adaln="zero"), "text_tokens"),
        (lambda: TransformerShape(1, 24, 3, 16, adaln="none"), "adaln"),
        (lambda: TransformerShape.from_model(small_dit(), text_tokens=7), "text_tokens"),
        (lambda: TransformerShape.from_config({"_class_name": "FluxTransformer2DModel"}), "model"),
        (lambda: TransformerShape.from_config({**PIXART_CONFIG, "num_layers": None}), "model"),
        (lambda: TransformerShape.from_config({**PIXART_CONFIG, "cross_attention_dim": None}), "model"),
        (lambda: TransformerShape.from_model(small_pixart(activation_fn="geglu")), "model"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        call()


app = typer.Typer()
app.command()(flops)


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


def json_of(*arguments):
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_command_counts_presets_and_methods():
    assert json_of()["true"]["total"] == transformer_flops(PIXART).total
    # 0.3 is not a binary fraction: the kept tokens must come out as ceil(7 N / 10) all the same.
    report = json_of("--compression", 0.3, "--batch", 2)
    assert (report["kept"], report["true"]["method"]) == (717, "mod")
    assert report["true"]["total"] == transformer_flops(PIXART, 717, batch=2).total
    assert report["paper"]["total"] == transformer_flops(PIXART, 717, batch=2, convention="paper").total
    atedm = json_of("--compression", 0.2, "--method", "atedm", "--text-tokens", 300)
    shape = replace(PRESETS["pixart-xl-512"], text_tokens=300)
    assert atedm["true"]["total"] == transformer_flops(shape, dsap_kept(shape, 819), method="atedm").total
    assert json_of("--preset", "dit-xl-256", "--height", 64)["shape"]["tokens"] == 1024


def test_command_counts_a_folder_and_a_table(tmp_path):
    model = small_pixart()
    model.save_config(tmp_path / "transformer")
    (tmp_path / "table.json").write_text("[[10, 7], [3, 0], [5, 5]]")
    report = json_of("--model", tmp_path, "--text-tokens", TEXT, "--kept-table", tmp_path / "table.json")
    shape = TransformerShape.from_model(model, text_tokens=TEXT)
    assert report["kept"] == [[16, 12], [5, 0], [8, 8]]
    assert report["true"]["total"] == transformer_flops(shape, report["kept"]).total


def test_command_prints_tables():
    counts = command("--compression", "0.2")
    assert counts.exit_code == 0
    assert all(word in counts.output for word in ("attention_out", "total", "saving", "21.3"))
    paper = command("--paper")
    assert paper.exit_code == 0
    assert all(word in paper.output for word in ("17361.7", "111594.2", "plausible", "fitted"))
    assert [row["status"] for row in json_of("--paper")].count("exact") == 4


def test_command_names_a_bad_file(tmp_path):
    path = tmp_path / "file.json"
    for text in ("[[10, 0.5]]", "[11]", "{}", "3", "[", "[10, 10]"):
        path.write_text(text)
        result = command("--kept-table", path)
        assert result.exit_code == 2 and "kept" in result.output
    for text in ("[]", "{}", "[", '{"_class_name": "UNet2DModel"}'):
        path.write_text(text)
        result = command("--model", path)
        assert result.exit_code == 2 and "model: " in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compression", "0.25"], "--compression"),
        (["--compression", "nan"], "--compression"),
        (["--compression", "inf"], "--compression"),
        (["--preset", "sd3"], "--preset"),
        (["--preset", "dit-xl-256", "--text-tokens", "7"], "--text-tokens"),
        (["--preset", "dit-xl-256", "--model", "x"], "--model"),
        (["--model", "no-such-folder"], "--model"),
        (["--kept-table", "no-such-file.json"], "--kept-table"),
        (["--kept-table", "x", "--compression", "0.1"], "--kept-table"),
        (["--width", "64"], "--height"),
        (["--height", "63"], "height"),
        (["--method", "magic"], "method"),
        (["--method", "dense", "--compression", "0.1"], "method"),
        (["--batch", "0"], "batch"),
        (["--baseline", "tome:0.2"], "baseline='tome:0.2' must be"),
        (["--baseline", "atedm:0.2", "--compression", "0.2"], "--baseline"),
        (["--baseline", "atedm:0.2", "--preset", "flux.1-dev-1024"], "--baseline"),
        (["--paper", "--compression", "0.2"], "--paper"),
    ],
)
def test_command_names_the_bad_option(arguments, message):
    result = command(*arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
