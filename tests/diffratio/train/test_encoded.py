"""Images with captions for a latent model: encoded once, cached as safetensors, read back one by one."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, PixArtTransformer2DModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diffratio.data import load_dataset
from diffratio.evaluation import inpainting, networks
from diffratio.evaluation.editor import editor_of
from diffratio.evaluation.evaluate import evaluate
from diffratio.evaluation.quality import SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.inpainting import DiffRatioInpaintPipeline, system_of
from diffratio.inpainting.masks import draw_masks, pooled
from diffratio.train import ArgumentError, Trainer, data, encoded

COLOURS = {"a red image": (255, 0, 0), "a green image": (0, 255, 0), "a blue one": (0, 0, 255)}
IMAGES, HELD_OUT = 18, 2
LATENT = {"in_channels": 4, "sample_size": 4, "patch_size": 2, "norm_num_groups": 1}
SMALL = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2} | LATENT
QUICK = {"resolution": 16, "max_sequence_length": 6, "max_train_steps": 2, "train_mode": "full"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A whole PixArt repository in small; its text encoder and VAE are real ones of a few channels."""
    root = tmp_path_factory.mktemp("repository")
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        **SMALL, out_channels=8, cross_attention_dim=48, caption_channels=16, use_additional_conditions=True
    )
    model.save_pretrained(root / "transformer")
    DDPMScheduler().save_pretrained(root / "scheduler")
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    vae = AutoencoderKL(**kinds, block_out_channels=[8] * 3, latent_channels=4, norm_num_groups=2)
    vae.save_pretrained(root / "vae")
    T5EncoderModel(
        T5Config(vocab_size=12, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(root / "text_encoder")
    words = ["<pad>", "</s>", "<unk>", "a", "red", "green", "blue", "image", "one"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for i in range(IMAGES):
        caption, colour = list(COLOURS.items())[i % 3]
        pixels = np.full((20, 16, 3), colour, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        rows.append({"file_name": f"{i:02}.png", "caption": caption})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def trainer(tiny, repository, images, folder, **changes):
    given = {"pretrained_model_name_or_path": str(repository), "dataset_name": str(images)} | QUICK | changes
    return Trainer(tiny.arguments(folder, **given), progress=False)


@torch.no_grad()
def test_items_are_what_the_repositorys_encoders_make_of_image_and_caption(
    tiny, repository, images, tmp_path
):
    dataset = trainer(tiny, repository, images, tmp_path).dataset
    assert len(dataset) == IMAGES - HELD_OUT
    plain = load_dataset(images, split="train", resolution=16)
    item, row = dataset[7], plain.batch([7])
    vae = AutoencoderKL.from_pretrained(repository / "vae")
    latents = vae.encode(row["pixel_values"]).latent_dist.mode()[0] * vae.config.scaling_factor
    torch.testing.assert_close(item["latents"], latents, rtol=2e-3, atol=2e-3)
    text = T5EncoderModel.from_pretrained(repository / "text_encoder")
    caption = plain.captions([7])[0]
    ids = {"a red image": [3, 4, 7], "a green image": [3, 5, 7], "a blue one": [3, 6, 8]}[caption]
    tokens = text(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(item["tokens"][:3], tokens, rtol=2e-3, atol=2e-3)
    assert item["mask"].tolist() == [1, 1, 1, 0, 0, 0] and item["mask"].dtype == torch.int64
    assert item["original_size"].tolist() == [16, 16]
    assert dataset.null["mask"].sum() == 0 and dataset.null["tokens"].shape == (6, 16)


def test_training_on_latents_runs_and_encodes_once(tiny, repository, images, tmp_path, monkeypatch):
    run = trainer(tiny, repository, images, tmp_path, method="lt").fit()
    assert run["step"] == 2
    assert sorted(path.name for path in (tmp_path / "encoded/train").iterdir()) == [
        "000000.safetensors",
        "null.safetensors",
        "settings.json",
    ]
    before = (tmp_path / "encoded/train/000000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(encoded.AutoencoderKL, "from_pretrained", None)
    again = trainer(tiny, repository, images, tmp_path, method="lt", resume_from_checkpoint="latest")
    assert len(again.dataset) == IMAGES - HELD_OUT
    assert (tmp_path / "encoded/train/000000.safetensors").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def pipeline(repository, tmp_path_factory):
    """The repository as a pipeline of diffusers."""
    folder = shutil.copytree(repository, tmp_path_factory.mktemp("pipelines") / "pixart")
    index = {
        "_class_name": "PixArtAlphaPipeline",
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


class Level:
    """In place of a network of pairs: the mean level of an image."""

    name = "hps"

    def __call__(self, images, captions):
        return images.flatten(1).mean(1).tolist()


@pytest.mark.parametrize("system", ["crop", "lazy"])
def test_holes_are_repainted_in_latents_and_judged_through_the_pipeline(
    system, tiny, pipeline, images, tmp_path, monkeypatch
):
    changes = {"task": "inpaint", "system": system, "method": "dense", "masks": "box"}
    run = trainer(tiny, pipeline, images, tmp_path / "run", **changes).fit()
    assert run["loss"] == "noise-MSE" and run["latents"]
    monkeypatch.setattr(inpainting, "_ROUNDS", 1)
    monkeypatch.setattr(networks, "hps_score", lambda path, device: Level())
    target, how = load_target(tmp_path / "run"), SampleSettings(2, steps=2, sampler="ddpm")
    given = {"batch": 1, "progress": False, "networks": networks.Networks(hps=tmp_path)}
    report = evaluate(target, how, keep_samples=tmp_path / "kept", **given)
    assert report["variance"] == "as the model predicts it" and report["masks"] == "box"
    for column in ("quality", "hidden"):
        assert report[column]["outside_differing"] == 0 and report[column]["hole_error"] > 0
    if system == "lazy":  # of a crop this small nothing is known but its hole
        assert report["quality"]["hps_by_sample"] != report["hidden"]["hps_by_sample"]
    # The same held-out images, holes and noise as in training, whose latents were kept in half precision.
    assert report["quality"]["noise_mse"] == pytest.approx(run["validation_loss"], rel=2e-2)
    low, none, *_, high = report["quality"]["noise_mse_by_quartile"]
    assert low > 0 and none is high is None, "two images, in the first and the third quarter"
    assert "Frechet distance and accuracy" in report["not_judged"][0]
    assert Image.open(tmp_path / "kept" / "hidden" / "000001.png").size == (16, 16)
    assert ("encoder_milliseconds" in report["edit"]) == (system == "lazy")


@torch.no_grad()
def test_the_latents_of_a_crop_are_those_of_its_pixels(tiny, pipeline, images, tmp_path):
    def samples(system, **more):
        changes = {"task": "inpaint", "system": system, "masks": "box"} | more
        one = trainer(tiny, pipeline, images, tmp_path / system, **changes)
        return data.training_loader(one.arguments, one.base, one.dataset, 1, 0).dataset

    crop, whole = samples("crop"), samples("image")
    item, other = crop[3], whole[3]
    assert item["latents"].shape == (4, 2, 2) and item["hole"].shape == (1, 2, 2)
    assert other["latents"].shape == (4, 4, 4) and item["original_size"].tolist() == [8, 8]
    row = crop._row(3)
    source = load_dataset(images, split="train", resolution=16)
    hole = draw_masks("box", torch.tensor([3]), 16, seed=1)
    assert torch.equal(pooled(hole, 4)[0], other["hole"]), "all systems have the same holes"
    frame = system_of("crop").frame(source.batch([row])["pixel_values"], hole, 8)
    vae = AutoencoderKL.from_pretrained(pipeline / "vae")
    latents = vae.encode(frame.pictures).latent_dist.mode()[0] * vae.config.scaling_factor
    torch.testing.assert_close(item["latents"], latents)
    with pytest.raises(ArgumentError, match="^dataloader_num_workers=1 must be 0 for system='crop'"):
        samples("crop", dataloader_num_workers=1)


def test_an_editor_samples_as_the_run_was_trained_and_knows_pipelines_of_a_hub(
    tiny, pipeline, images, tmp_path, monkeypatch
):
    trainer(tiny, pipeline, images, tmp_path, recipe="inpaint", max_train_steps=1).fit()
    info = json.loads((tmp_path / "run.json").read_text())
    schedulers = [editor_of(load_target(tmp_path), None, sampler=one).scheduler for one in (None, "dpm++")]
    assert [type(one).__name__ for one in schedulers] == ["DDPMScheduler", "DPMSolverMultistepScheduler"]
    config = schedulers[0].config
    assert (config.variance_type, config.clip_sample) == ("learned_range", False)
    (tmp_path / "run.json").write_text(json.dumps(info | {"base_model": "/nowhere/pixart"}))
    with pytest.raises(ValueError, match="^path: the pipeline '/nowhere/pixart' of .* cannot be loaded"):
        editor_of(load_target(tmp_path), None)
    (tmp_path / "run.json").write_text(json.dumps(info | {"base_model": "someone/pixart"}))
    load, asked = DiffRatioInpaintPipeline.from_pretrained, []

    def of_a_hub(name, local_files_only, **options):
        asked.append((name, local_files_only))
        return load(pipeline, local_files_only=True, **options)

    monkeypatch.setattr(DiffRatioInpaintPipeline, "from_pretrained", of_a_hub)
    assert editor_of(load_target(tmp_path), None).vae is not None and asked == [("someone/pixart", False)]


def test_what_was_encoded_for_another_run_is_not_used(tiny, repository, images, tmp_path):
    trainer(tiny, repository, images, tmp_path)
    for changes in ({"resolution": 32}, {"max_sequence_length": 5}, {"caption_column": "file_name"}):
        with pytest.raises(ArgumentError, match="^output_dir=.* holds images encoded with other settings"):
            trainer(tiny, repository, images, tmp_path, **changes)
    assert len(trainer(tiny, repository, images, tmp_path, train_batch_size=2).dataset) == IMAGES - HELD_OUT


@pytest.mark.parametrize("name", ["000000", "null"])
def test_a_file_that_was_cut_short_is_named(tiny, repository, images, tmp_path, name):
    trainer(tiny, repository, images, tmp_path)
    path = tmp_path / f"encoded/train/{name}.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArgumentError, match=f"^output_dir: .*{name}.safetensors cannot be read"):
        trainer(tiny, repository, images, tmp_path).dataset[0]
    path.unlink()
    assert len(trainer(tiny, repository, images, tmp_path).dataset[0]["tokens"]) == 6


@pytest.mark.parametrize(
    "option", [{"logit_mean": 2.0}, {"guidance_scale": 7.0}, {"weighting_scheme": "none"}]
)
def test_options_of_flow_models_are_refused(tiny, repository, images, tmp_path, option):
    with pytest.raises(ArgumentError, match=f"^{next(iter(option))}=.* is for flow models alone"):
        trainer(tiny, repository, images, tmp_path, **option)


def test_a_broken_image_is_an_error_of_the_data_set(tiny, repository, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/05.png").write_text("no image")
    with pytest.raises(ArgumentError, match="^dataset_name=.*: image .*05.png cannot be read"):
        trainer(tiny, repository, tmp_path / "images", tmp_path / "run")


def test_chunks_hold_the_items_in_order(tiny, repository, images, tmp_path, monkeypatch):
    whole = list(trainer(tiny, repository, images, tmp_path / "whole").dataset)
    monkeypatch.setattr(encoded, "CHUNK", 5)
    parts = trainer(tiny, repository, images, tmp_path / "parts").dataset
    assert len(list((tmp_path / "parts/encoded/train").glob("0*.safetensors"))) == 4
    for one, other in zip(whole, parts, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)


def test_a_class_conditional_model_takes_the_folders_as_classes(tiny, repository, images, tmp_path):
    torch.manual_seed(0)
    DiTTransformer2DModel(**SMALL, out_channels=8, num_embeds_ada_norm=10).save_pretrained(
        tmp_path / "dit/transformer"
    )
    (tmp_path / "dit/vae").symlink_to(repository / "vae")
    (tmp_path / "dit/scheduler").symlink_to(repository / "scheduler")
    for path in sorted(images.glob("*.png")):
        folder = tmp_path / "classes" / ("even" if int(path.stem) % 2 == 0 else "odd")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
    one = trainer(tiny, tmp_path / "dit", tmp_path / "classes", tmp_path / "run", method="mod")
    assert "tokens" not in one.dataset[0]
    assert {int(item["attributes"][0]) for item in one.dataset} == {0, 1}
    assert one.fit()["step"] == 2
    with pytest.raises(ArgumentError, match="^dataset_name=.* has no classes"):
        trainer(tiny, tmp_path / "dit", images, tmp_path / "other", method="mod")


def test_what_the_repository_lacks_is_named(tiny, repository, images, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("transformer", "scheduler", "vae"):
        (tmp_path / "bare" / name).symlink_to(repository / name)
    with pytest.raises(
        ArgumentError, match="^pretrained_model_name_or_path=.*bare.* needs a vae, and a tokenizer"
    ):
        trainer(tiny, tmp_path / "bare", images, tmp_path / "run")
    with pytest.raises(ArgumentError, match="^caption_column: .* has no title"):
        trainer(tiny, repository, images, tmp_path / "other", caption_column="title")
