"""`diffratio eval` and `sample` of PixArt and DiT in latents, which their pipelines draw and judge."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from diffratio.diffusion.pipelines import load_pipeline
from diffratio.diffusion.schedules import target_of
from diffratio.evaluation import networks
from diffratio.evaluation.pipeline import IMAGES
from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.train import TrainArguments, train

from .test_flow_pipelines import FEW, call, told

SIDE = 64


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("diffratio.train.data.VALIDATION_IMAGES", 8)
    monkeypatch.setattr("diffratio.evaluation.pipeline.ROUNDS", 1)
    monkeypatch.setitem(IMAGES, False, 4)


@pytest.fixture(scope="module")
def root(flow_pipelines, tmp_path_factory):
    """The pipelines `pixart` and `dit`, captioned `photos`, and `classes`: the same photos by form."""
    root = tmp_path_factory.mktemp("latents")
    flow_pipelines.draw_photos(root / "photos")
    for line in (root / "photos" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        folder = root / "classes" / row["text"].split()[-1]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "photos" / row["file_name"], folder)
    for name in ("pixart", "dit"):
        flow_pipelines.save(name, root / name)
    return root


@pytest.fixture(scope="module")
def run_of(root):
    """A run of two steps of each pipeline, made when it is asked for."""

    def run(name):
        out = root / f"{name}-run"
        if not out.is_dir():
            data = root / ("classes" if name == "dit" else "photos")
            arguments = TrainArguments(
                pretrained_model_name_or_path=str(root / name), dataset_name=str(data), resolution=SIDE,
                output_dir=str(out), max_sequence_length=8, max_train_steps=2, train_batch_size=4, rank=2,
                method="lt", num_regions=2, target_compression=0.5, report_to="none",
            )  # fmt: skip
            train(arguments, progress=False)
        return out

    return run


class Pairs:
    """In place of a network of pairs: the mean level of an image, times the length of its caption."""

    def __init__(self, name):
        self.name = name

    def __call__(self, images, captions):
        return [(one.mean() * len(text)).item() for one, text in zip(images, captions, strict=True)]


class Quarters(networks.Inception):
    """In place of Inception: the means of the quarters of an image."""

    def __init__(self, path, device):
        pass

    def features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Options that name the networks, whose places stand-ins have."""
    monkeypatch.setattr(networks, "Inception", Quarters)
    monkeypatch.setattr(networks, "clip_score", lambda path, device: Pairs("clip_score"))
    monkeypatch.setattr(networks, "hps_score", lambda path, device: Pairs("hps"))
    return [part for name in ("fid", "clip", "hps") for part in (f"--{name}-weights", tmp_path / name)]


@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_eval_judges_samples_that_the_pipeline_draws(name, run_of, weights, tmp_path: Path, monkeypatch):
    few = ["--samples", 5, "--batch", 1, "--keep-samples", tmp_path / "kept", *FEW, *weights]
    report = told("eval", run_of(name), *few)
    assert report["quality"].keys() >= {"fid", "clip_score", "hps", "noise_mse", "noise_mse_by_quartile"}
    assert report["quality"]["fid_reference"] == 2 and len(report["quality"]["hps_by_sample"]) == 5
    errors = [report[column]["noise_mse"] for column in ("base", "dense", "quality")]
    assert len(set(errors)) == 3 and errors[0] == pytest.approx(errors[1], rel=0.02)  # LoRA of two steps
    assert report["not_judged"] == [
        "router scores against object masks",
        "Frechet distance and accuracy, which need a classifier of the pictures",
    ]
    layers = report["cost"]["sparse"]["layers"]
    assert len(layers["milliseconds"]) == len(layers["peak_megabytes"]) == 3
    kept = tmp_path / "kept" / "sparse"
    assert Image.open(kept / "000004.png").size == (SIDE, SIDE)
    # From the folder alone, as after a stop.
    monkeypatch.setattr("diffratio.evaluation.pipeline.draw", lambda *_: pytest.fail("drew again"))
    again = told("eval", run_of(name), *few)
    assert [again[column] for column in ("quality", "dense", "base")] == [
        report[column] for column in ("quality", "dense", "base")
    ]
    refused = call("eval", run_of(name), *few, "--seed", 1)
    assert refused.exit_code == 2 and "holds samples with another seed" in refused.output


def test_eval_prints_what_it_judged(run_of, weights):
    result = call("eval", run_of("pixart"), "--samples", 2, "--batch", 1, *FEW, *weights)
    assert result.exit_code == 0, result.output
    for words in ("noise-MSE", "FID: 2 samples against 2 held-out images; of less than 2048 it says little",
                  "HPSv2", "±", "one routed block, the mean of 3", "by the wall clock"):  # fmt: skip
        assert words in result.output
    assert "published" not in result.output


def test_samples_are_those_of_the_pipeline_itself(run_of, root):
    target = load_target(run_of("pixart"))
    judge = Judge.of(target, SampleSettings(5, seed=3, steps=2, guidance=3.0), progress=False)
    images = judge.samples(target)
    assert images.shape == (5, 3, SIDE, SIDE) and images.std() > 0.01
    pipe = load_pipeline(str(root / "pixart"), target.model)
    own = pipe.scheduler.config
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(own, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    captions = judge.held_out.captions(judge.wanted)
    for rows in (slice(0, 4), slice(4, 5)):
        noise = [torch.Generator().manual_seed(3 + row) for row in range(5)[rows]]
        expected = pipe(
            captions[rows], num_inference_steps=2, guidance_scale=3.0, generator=noise, clean_caption=False,
            output_type="pt", use_resolution_binning=False, max_sequence_length=8,
        ).images  # fmt: skip
        torch.testing.assert_close(images[rows], 2 * expected - 1, atol=1e-5, rtol=0)
    # A longer list begins with the same images: the noise of each depends on its number.
    longer = Judge.of(target, SampleSettings(9, seed=3, steps=2, guidance=3.0), progress=False)
    torch.testing.assert_close(longer.samples(target)[:4], images[:4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_the_error_is_that_of_what_the_model_predicts(name, run_of):
    target = load_target(run_of(name))
    judge = Judge.of(target, SampleSettings(2), progress=False)
    pipeline, held_out = target.pipeline, judge.held_out
    error = pipeline.prediction_error(target.model, held_out)
    batch, generator = held_out.batch([0, 1]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = 0.5 * pipeline.pipe.vae.encode(batch["pixel_values"]).latent_dist.mode()
        places = torch.rand(2, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        timestep = (1000 * places / 4).long()  # the cleanest quarter
        if name == "dit":
            given = {"class_labels": batch["attributes"][:, 0]}
        else:
            words = pipeline.pipe.tokenizer(
                held_out.captions([0, 1]), padding="max_length", max_length=8, return_tensors="pt"
            )
            mask = words.attention_mask
            tokens = pipeline.pipe.text_encoder(words.input_ids, attention_mask=mask)[0]
            given = {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
            given |= {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        noisy = target.schedule.add_noise(latents, noise, timestep)
        predicted = target.model(noisy, timestep=timestep, **given).sample[:, :4]
    expected = (predicted - target_of(target.schedule, latents, noise, timestep)).square().mean().item()
    assert error.by_quartile[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_ddpm_draws_other_images_and_the_same_again(name, run_of):
    target = load_target(run_of(name))

    def drawn(sampler):
        settings = SampleSettings(2, steps=4, sampler=sampler)
        return settings, Judge.of(target, settings, progress=False).samples(target)

    (settings, first), (_, again), (_, other) = (drawn(sampler) for sampler in ("ddpm", "ddpm", "dpm++"))
    assert torch.equal(first, again) and (first - other).abs().max() > 1e-3
    assert settings.variance(target) == "fixed (a pipeline drops what the model predicts of it)"


def test_a_class_is_drawn_by_its_name_and_another_word_is_named(run_of, root, tmp_path: Path):
    few = ["--columns", 1, "--out", tmp_path / "one.png", *FEW]
    assert told("sample", run_of("dit"), "--prompt", "box", *few)["captions"] == ["box"]
    assert told("sample", run_of("pixart"), "--prompt", "a red box", *few)["captions"] == ["a red box"]
    other = call("sample", run_of("dit"), "--prompt", "dog", *few)
    assert other.exit_code == 2 and "prompt='dog' must be a class: box, circle" in other.output
    report = told("eval", root / "dit", "--dataset", root / "photos", "--batch", 1, *FEW)
    assert "has no classes, which the model draws" in report["why_no_quality"]


def test_a_pipeline_of_a_folder_is_judged_and_what_it_lacks_is_named(root, tmp_path: Path):
    few = ["--samples", 2, "--batch", 1, *FEW]
    report = told("eval", root / "pixart", "--dataset", root / "photos", *few)
    assert report["quality"]["noise_mse"] > 0 and "base" not in report
    folder = shutil.copytree(root / "pixart", tmp_path / "pixart")
    shutil.rmtree(folder / "vae")
    report = told("eval", folder, "--dataset", root / "photos", *few)
    assert "cannot be loaded" in report["why_no_quality"] and report["cost"]["dense"]["gflop"] > 0


@pytest.mark.parametrize(
    "name, side, words",
    [
        ("pixart", 8, "must be a multiple of 16"),
        ("dit", 128, "the model draws 64 pixels a side"),
    ],
)
def test_a_side_that_the_model_does_not_draw_is_named(name, side, words, root):
    target = load_target(root / name, dataset=str(root / "classes"))
    target.options["resolution"] = side
    assert words in Judge.of(target, SampleSettings(2), progress=False).why_not(target)
