import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel, PixArtTransformer2DModel
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

import diffratio
from diffratio.data import load_dataset
from diffratio.diffusion import noise_schedule, sampling_scheduler
from diffratio.diffusion.prediction import prediction_error
from diffratio.evaluation.target import load_target
from diffratio.routing.adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from diffratio.toy import DIGITS_LT30, PRETRAINED, load_pixart, small_pixart
from diffratio.toy.pretrain import LAYERS, LOG_FILE, Recipe, draw, fit, main, v_mse


def pretrain(*arguments):
    app = Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_model_for_shapes_has_64_tokens_and_about_a_million_parameters():
    shapes = load_dataset("shapes")
    model = small_pixart(shapes, 0)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    assert (model.config.sample_size // model.config.patch_size) ** 2 == 64
    batch = shapes.batch(range(2))
    with torch.no_grad():
        out = model(batch["pixel_values"], batch["tokens"], timestep=torch.tensor([1, 999])).sample
    assert out.shape == (2, 3, 32, 32) and not out.any()  # untrained, it predicts zero


def test_a_seed_gives_a_model_and_leaves_the_global_generator_alone():
    digits, state = load_dataset("digits"), torch.get_rng_state()
    first, second = small_pixart(digits, 0), small_pixart(digits, 0)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.pos_embed.proj.weight, small_pixart(digits, 1).pos_embed.proj.weight)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_dropped_text_is_the_null_text(name):
    dataset = load_dataset(name)
    images, tokens = draw(dataset, 64, 0.5, torch.Generator().manual_seed(0))
    null = (tokens == dataset.null_tokens).flatten(1).all(1)
    assert 16 < null.sum() < 48
    assert images.shape == (64, dataset.channels, dataset.size, dataset.size)
    again, _ = draw(dataset, 64, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_the_loss_is_the_error_of_the_velocity():
    batch = load_dataset("digits").batch(range(4))
    images, noise = batch["pixel_values"], torch.randn(4, 1, 8, 8)
    timesteps = torch.tensor([0, 300, 600, 999])
    model = small_pixart(load_dataset("digits"), 0)
    loss = v_mse(model, noise_schedule(), images, batch["tokens"], timesteps, noise)
    target = noise_schedule().get_velocity(images, noise, timesteps)
    torch.testing.assert_close(loss, target.square().mean())  # the untrained model predicts zero


def test_training_lowers_the_loss_and_keeps_the_average():
    digits, held_out = load_dataset("digits"), load_dataset("digits", split="held_out")
    model, log = small_pixart(digits, 0, layers=5), []
    before = prediction_error(model, held_out).overall
    fit(model, digits, Recipe(seed=0, steps=8, learning_rate=1e-3, batch=32), lambda **line: log.append(line))
    assert not model.training
    after = prediction_error(model, held_out).overall
    assert after < before
    assert [line["v_mse"] for line in (log[0], log[-1])] == [round(before, 5), round(after, 5)]


def test_a_seed_repeats_a_training(tmp_path: Path):
    weights = []
    for name in ("first", "second"):
        result = pretrain("digits", tmp_path / name, "--seed", 7, "--steps", 2, "--batch", 8)
        assert result.exit_code == 0, result.output
        header, *_ = map(json.loads, (tmp_path / name / LOG_FILE).read_text().splitlines())
        assert header["recipe"]["seed"] == 7 and header["recipe"]["steps"] == 2
        assert header["versions"]["torch"] == torch.__version__
        weights.append(load_pixart(tmp_path / name).state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_pretraining_writes_a_model_that_repeats_its_log(tmp_path: Path, monkeypatch):
    few = partial(prediction_error, samples=16)
    monkeypatch.setattr("diffratio.toy.pretrain.prediction_error", few)
    result = pretrain("shapes", "--steps", 1, "--batch", 4, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    header, start, last, end = map(json.loads, (tmp_path / LOG_FILE).read_text().splitlines())
    assert header["recipe"]["batch"] == 4 and header["model"] == "shapes" and end["finished"]
    assert last["step"] == 1 and last["v_mse"] < start["v_mse"]
    error = few(load_pixart(tmp_path), load_dataset("shapes", split="held_out"))
    assert error.overall == pytest.approx(last["v_mse"], abs=1e-3)
    result = pretrain("shapes", "--steps", 1, "--from", tmp_path, tmp_path / "second")
    assert result.exit_code == 0, result.output
    second = json.loads((tmp_path / "second" / LOG_FILE).read_text().splitlines()[1])
    assert second == {"step": 0, "v_mse": last["v_mse"]}


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_shipped_log_tells_how_the_model_was_made(name):
    lines = [json.loads(line) for line in (PRETRAINED[name] / LOG_FILE).read_text().splitlines()]
    header, last, end = lines[0], lines[-2], lines[-1]
    model = load_pixart(PRETRAINED[name])
    assert type(model) is PixArtTransformer2DModel and len(model.transformer_blocks) == LAYERS[name]
    assert header["parameters"] == sum(p.numel() for p in model.parameters()) and end["finished"]
    error = prediction_error(model, load_dataset(name, split="held_out"))
    assert error.overall == pytest.approx(last["v_mse"], abs=1e-3)


def test_the_shipped_sparse_model_has_learned_where_to_compress():
    ratios = read_weights(DIGITS_LT30 / WEIGHTS_NAME)[RATIOS]
    assert abs(ratios.mean().item() - 0.7) <= 0.01
    tenths = torch.tensor(load_target(DIGITS_LT30).kept_tenths)
    assert tenths.shape == ratios.shape == (5, 4)
    assert (tenths / 10 - ratios).abs().max() <= 0.05 + 1e-6
    assert (tenths != tenths[:1]).any() and (tenths != tenths[:, :1]).any()


@pytest.mark.parametrize("folder", [*PRETRAINED.values(), DIGITS_LT30], ids=lambda folder: folder.name)
def test_weights_are_stored_in_fp16_and_read_as_fp32(folder):
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for model in (load_pixart(folder), AutoModel.from_pretrained(str(folder))):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
        assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.state_dict().items())
    for config in folder.glob("*.json"):
        assert not json.loads(config.read_text()).get("_name_or_path")


def test_an_unknown_data_set_and_an_empty_folder_are_refused(tmp_path: Path):
    result = pretrain("faces", tmp_path)
    assert result.exit_code == 2 and "name='faces' must be one of digits, shapes" in result.output
    with pytest.raises(FileNotFoundError, match="folder .* holds no model"):
        load_pixart(tmp_path)


def test_sampling_starts_from_pure_noise():
    scheduler = sampling_scheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert scheduler.alphas_cumprod[999] < 1e-4


def test_the_package_stays_small():
    package = Path(diffratio.__file__).parent
    assert sum(path.stat().st_size for path in package.rglob("*.safetensors")) < 6_500_000
