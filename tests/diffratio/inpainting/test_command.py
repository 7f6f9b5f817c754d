"""`diffratio inpaint`: on a model of pixels and on a pipeline."""

import json

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pytest
import torch
import typer
from typer.testing import CliRunner

from diffratio import DiffRatioConfig, apply_diffratio, save_diffratio
from diffratio.cli.inpaint import inpaint
from diffratio.diffusion import noise_schedule
from diffratio.inpainting import system_of
from diffratio.routing.find import routed_blocks
from diffratio.toy import PRETRAINED, load_pixart

PROMPT = "a large red circle in the upper left on clouds"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, masks and models: `lazy` with an adapter beside it, and `image`."""
    folder = tmp_path_factory.mktemp("inpaint")
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    PIL.Image.fromarray(colours).save(folder / "photo.png")
    mask = np.zeros((32, 32), dtype=np.uint8)
    PIL.Image.fromarray(mask).save(folder / "empty.png")
    mask[3:11, 5:20] = 255
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    PIL.Image.fromarray(mask[:16]).save(folder / "half.png")
    torch.manual_seed(0)
    for name in ("lazy", "image"):
        model = system_of(name).from_pixart(load_pixart(PRETRAINED["shapes"]))
        model.save_pretrained(folder / name)
        noise_schedule().save_pretrained(folder / name / "scheduler")
        if name == "lazy":
            apply_diffratio(model, DiffRatioConfig(0.3))
            for block in routed_blocks(model):
                block.diffratio.router_weight.data.add_(0.1)
            save_diffratio(model, folder / name)
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """`run(model, **options)` as typed in the folder."""
    monkeypatch.chdir(folder)
    app = typer.Typer()
    app.command()(inpaint)

    def run(model, *words, **options):
        given = {"image": "photo.png", "mask": "mask.png", "prompt": PROMPT, "steps": 2} | options
        given = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return CliRunner().invoke(app, [model, *given, *words], env={"COLUMNS": "200"})

    return run


@pytest.mark.parametrize("system", ["lazy", "image", "crop"])
def test_it_repaints_and_leaves_the_rest(run, folder, system):
    options = {"dataset": "shapes", "out": f"out/{system}.png"}
    options |= {} if system == "lazy" else {"system": system}
    result = run("lazy" if system == "lazy" else "image", **options)
    assert result.exit_code == 0, result.output
    before, after = (np.asarray(PIL.Image.open(folder / x)) for x in ("photo.png", options["out"]))
    inside = np.asarray(PIL.Image.open(folder / "mask.png")) > 127
    assert np.array_equal(before[~inside], after[~inside]) and not np.array_equal(
        before[inside], after[inside]
    )
    assert "11.7% of the picture repainted" in result.output
    assert "0 pixels outside of the mask differ" in result.output


def test_a_picture_is_taken_as_it_is_seen(run, folder):
    """A camera that was turned leaves a note in the file; a colour profile says what bytes look like."""
    wide, exif = PIL.Image.open(folder / "photo.png").resize((48, 32)), PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    wide.save(folder / "turned.png", exif=exif, icc_profile=b"profile")
    seen = PIL.ImageOps.exif_transpose(PIL.Image.open(folder / "turned.png"))
    mask = PIL.Image.new("L", seen.size)
    mask.paste(255, (4, 20, 20, 30))
    mask.save(folder / "tall.png")
    result = run("lazy", dataset="shapes", image="turned.png", mask="tall.png", out="out/turned.png")
    assert result.exit_code == 0, result.output
    made, inside = PIL.Image.open(folder / "out/turned.png"), np.asarray(mask) > 127
    assert made.size == (32, 48) and made.info["icc_profile"] == b"profile"
    assert np.array_equal(np.asarray(made)[~inside], np.asarray(seen)[~inside])


def test_options_are_those_of_the_call(run, folder, monkeypatch):
    calls = []

    def repaint(*given, **options):
        calls.append((given[3:], options))
        return [given[1]]

    monkeypatch.setattr("diffratio.inpainting.inpaint", repaint)
    given = {"dataset": "shapes", "seed": 3, "guidance": 2.5, "strength": 0.5, "negative-prompt": "clouds"}
    assert run("lazy", **given).exit_code == 0
    [(words, options)] = calls
    assert words == (PROMPT, "lazy", 2, 2.5)
    assert options.pop("generator").initial_seed() == 3
    assert options == {"strength": 0.5, "negative_prompt": "clouds", "max_sequence_length": 120}


def test_json(run, folder):
    (folder / "model_index.json").write_text("{}")  # a pipeline that nobody asked for, where it is typed
    result = run("lazy", "--json", dataset="shapes")
    (folder / "model_index.json").unlink()
    report = json.loads(result.stdout)
    assert report["outside_pixels_changed"] == 0 and report["system"] == "lazy"
    assert report["sampler"] == "DPMSolverMultistepScheduler"
    assert report["hole"] == pytest.approx(120 / 1024) and report["picture"] == "out/inpainted.png"


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("lazy", {"mask": "empty.png"}, "mask='empty.png' is empty"),
        ("lazy", {"mask": "half.png"}, "mask is 32 x 16, image is 32 x 32"),
        ("lazy", {"image": "lazy/config.json"}, "image='lazy/config.json' is no picture"),
        ("lazy", {"out": "out.jpg"}, "out='out.jpg' must be a PNG file"),
        ("lazy", {"dataset": "shapes", "system": "image"}, "system='image' wants a PixArt"),
        ("lazy", {"dataset": "shapes", "system": "eager"}, "system='eager' must be one of"),
        ("lazy", {"dataset": "shapes", "prompt": "a dog"}, "prompt='a dog' must name one shape"),
        ("lazy", {}, "dataset: none is known for 'lazy'"),
        ("image", {"dataset": "shapes"}, "system: must be given for 'image': image or crop"),
        ("shapes", {"system": "lazy"}, "system='lazy' wants a LazyPixArt"),
        ("nowhere", {}, "path: 'nowhere' holds no run, model or adapter"),
        ("lazy", {"dataset": "shapes", "strength": 0.1}, "strength=0.1 must be in"),
        ("lazy", {"dataset": "shapes", "sampler": "euler"}, "sampler='euler' must be one of dpm++, ddpm"),
        ("lazy", {"dataset": "shapes", "sampler": "ddpm", "steps": 1}, "steps must be at least 2, got 1"),
    ],
)
def test_wrong_arguments_are_named(run, model, options, said):
    result = run(model, **options)
    words = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2 and said in words, words
