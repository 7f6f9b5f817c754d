"""Training to repaint: the loss counts in the hole alone, holes are a function of the sample, and what a run
leaves behind is the model that was validated."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import typer
from diffusers import DDPMScheduler
from typer.testing import CliRunner

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.cli.eval import eval as eval_command
from diffratio.cli.eval import print_report
from diffratio.cli.sample import sample
from diffratio.data import load_dataset
from diffratio.diffusion import noise_schedule
from diffratio.diffusion.variance import VariationalBound
from diffratio.evaluation import inpainting, networks
from diffratio.evaluation.quality import SampleSettings
from diffratio.evaluation.target import Target
from diffratio.inpainting import pipeline
from diffratio.inpainting.masks import KINDS, draw_masks, pooled
from diffratio.inpainting.systems import SYSTEMS, system_of
from diffratio.routing.find import routed_layers, routed_model
from diffratio.toy import PRETRAINED, load_pixart
from diffratio.train import ArgumentError, TrainArguments, Trainer, arguments, data, load_run
from diffratio.train.encoded import EncodedDataset
from diffratio.train.inpainting import InpaintObjective, holes_of
from diffratio.train.model import load_base
from diffratio.train.objective import validate

INPAINT = {"task": "inpaint", "method": "lt", "num_regions": 10}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_result_is_the_model_that_was_validated(system, tiny, tmp_path):
    trainer = Trainer(tiny.arguments(tmp_path, system=system, **INPAINT), progress=False)
    run = trainer.fit()
    model, info = load_run(tmp_path)
    assert system_of(system).why_not(model) is None and info["loss"] == "v-MSE"
    assert routed_model(model).config.num_regions == 10 and len(routed_layers(model)) == 3
    found = validate(trainer.accelerator, model, trainer.base.objective, trainer.validation, 10)
    assert found["validation_loss"] == pytest.approx(run["validation_loss"], rel=1e-5)
    assert sum(map(sum, run["ratios"])) / 30 == pytest.approx(0.7, abs=0.01)


class Told(torch.nn.Module):
    """A model of the system "image" that predicts what it is told."""

    def __init__(self, model, predicted):
        super().__init__()
        self.config, self.out_channels, self.predicted = model.config, model.out_channels, predicted

    def forward(self, hidden_states, timestep=None, encoder_hidden_states=None, return_dict=True, **_):
        self.seen = hidden_states
        return (self.predicted,)


def test_the_loss_is_the_mean_over_the_patches_of_the_hole(tiny):
    model = system_of("image").from_pixart(tiny.make("pixart"))
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 1, 8, 8, generator=generator) for _ in range(2))
    predicted = torch.randn(2, 2, 8, 8, generator=generator)
    hole = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    hole[0, :, 3, 3], hole[1, :, :4, 1:7] = True, True
    patches = torch.zeros_like(hole)  # of 2 x 2
    patches[0, :, 2:4, 2:4], patches[1, :, :4, :] = True, True
    given = {"pixel_values": clean, "noise": noise, "hole": hole, "tokens": torch.zeros(2, 4, 32)}
    given["timestep"] = torch.tensor([30, 700])
    schedule = noise_schedule()
    told = Told(model, predicted)
    loss = InpaintObjective(model, schedule, system=system_of("image"), learn_variance=True)(told, given)
    error = predicted[:, :1] - schedule.get_velocity(clean, noise, given["timestep"])
    bound = VariationalBound(schedule)(error, predicted[:, 1:], given["timestep"])
    expected = [(error**2 + bound)[row][patches[row]].mean() for row in range(2)]
    torch.testing.assert_close(loss, torch.stack(expected))
    assert torch.equal(told.seen[:, :1], schedule.add_noise(clean, noise, given["timestep"]))
    assert torch.equal(told.seen[:, 1:2], clean.masked_fill(hole, 0)) and torch.equal(
        told.seen[:, 2:], hole.float()
    )


def samples(first=0, seed=0, **changes):
    given = TrainArguments(task="inpaint", train_mode="full", **changes)
    shapes = load_dataset("shapes")
    model = torch.nn.Module()
    model.config = type("Config", (), {"patch_size": 4})
    holes = holes_of(given, model, shapes, 1, seed)
    times = type("Times", (), {"draw": lambda self, clean, generator: torch.tensor(5)})()
    return data.TrainingSamples(shapes, seed, first, 40, times=times, drop=0.0, holes=holes)


@pytest.mark.parametrize("masks", ["mixed", "object"])
def test_a_hole_is_a_function_of_the_sample(masks):
    all_of_them, later = samples(masks=masks), samples(first=7, masks=masks)
    for number in (7, 11):
        one, same = all_of_them[number], later[number - 7]
        assert all(torch.equal(one[name], same[name]) for name in one)
    holes = [all_of_them[number]["hole"] for number in range(8)]
    assert all(hole.any() and hole.dtype == torch.bool for hole in holes)
    assert len({hole.sum().item() for hole in holes}) > 4
    one, epoch_later = (all_of_them.holes(all_of_them.dataset[3], 3, number)["hole"] for number in (5, 505))
    assert torch.equal(one, epoch_later) == (masks == "object")
    if masks == "object":
        row = all_of_them._row(3)
        assert torch.equal(all_of_them[3]["hole"][0], load_dataset("shapes").masks([row])[0] > 0)
    else:
        assert not torch.equal(all_of_them[3]["hole"], samples(seed=1)[3]["hole"])


class Encoded(EncodedDataset):
    """Latents of pictures of 64 x 64 pixels, without files."""

    def __init__(self):
        source = SimpleNamespace(size=64, masks=lambda rows: torch.ones(len(rows), 64, 64))
        self.count, self.source = 4, source

    def __getitem__(self, index):
        return {"latents": torch.zeros(4, 8, 8)}


def test_holes_of_a_run_are_its_seed_s_and_latents_have_those_of_their_pixels():
    given = {"task": "inpaint", "train_mode": "full", "masks": "strokes"}
    model = torch.nn.Module()
    model.config = SimpleNamespace(patch_size=2)
    base = data.Base(model, None, SimpleNamespace(times=None))
    shapes, item, drawn = load_dataset("shapes"), {"pixel_values": torch.zeros(3, 32, 32)}, []
    for seed in (0, 0, 1):
        loader = data.training_loader(TrainArguments(seed=seed, **given), base, shapes, 1, 0)
        drawn.append(loader.dataset.holes(item, 0, 3)["hole"])
    held_out = data.validation_loader(TrainArguments(seed=1, **given), base, shapes)
    drawn.append(held_out.dataset.holes(item, 0, 3)["hole"])
    first, same, *others = drawn
    assert torch.equal(first, same) and not any(torch.equal(first, other) for other in others)
    assert torch.equal(drawn[-1][None], draw_masks("strokes", torch.tensor([3]), 32))
    holes = data.validation_loader(TrainArguments(**given), base, Encoded()).dataset.holes
    found = holes(Encoded()[0], 0, 3)["hole"]
    assert torch.equal(found, pooled(draw_masks("strokes", torch.tensor([3]), 64), 8)[0])


def test_a_crop_is_a_square_of_half_the_side_around_the_hole():
    item, whole = samples(system="crop", masks="object")[0], samples(masks="object")[0]
    assert item["pixel_values"].shape == item["noise"].shape == (3, 16, 16) and item["hole"].shape == (
        1,
        16,
        16,
    )
    assert item["hole"].float().mean() > whole["hole"].float().mean()


def test_the_command_line_knows_the_names_without_diffusers():
    assert tuple(SYSTEMS) == arguments.SYSTEMS and ("mixed", *KINDS) == arguments.MASKS


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_mode": "lora"}, "^train_mode='lora' must be full for task=inpaint"),
        ({"masks": "object"}, "^masks='object': .* needs objects"),
        (
            {"model": "dit"},
            "^pretrained_model_name_or_path=.*must be a PixArtTransformer2DModel, got a? ?DiT",
        ),
    ],
)
def test_what_cannot_repaint_is_named(changes, text, tiny, tmp_path):
    with pytest.raises(ArgumentError, match=text):
        Trainer(tiny.arguments(tmp_path, **INPAINT, **changes), progress=False)


@pytest.fixture(scope="module")
def repainted(tiny, tmp_path_factory):
    """A run of seconds."""
    folder = tmp_path_factory.mktemp("runs") / "lazy"
    tiny.train(folder, **INPAINT, max_train_steps=2, validation_steps=2, checkpointing_steps=2)
    return folder


def told(command, *given):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(one) for one in given], env={"COLUMNS": "200"})


class Corners(networks.Inception):
    """In place of Inception."""

    def __init__(self, path, device):
        pass

    def features(self, images):
        return images[..., ::7, ::7].flatten(1)


class Length:
    """In place of a network of pairs: how long the caption is."""

    name = "hps"

    def __call__(self, images, captions):
        return [float(len(caption)) for caption in captions]


def test_eval_paints_by_a_baseline(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(inpainting, "_ROUNDS", 1)
    dense = {"task": "inpaint", "system": "image", "method": "dense"}
    tiny.train(tmp_path / "run", **dense, max_train_steps=1, validation_steps=1, checkpointing_steps=1)
    given = ["--baseline", "tome:mlp:0.5", "--samples", 6, "--steps", 2, "--batch", 2, "--json"]
    report = json.loads(told(eval_command, tmp_path / "run", *given).stdout)
    assert report["quality"]["v_mse"] != report["dense"]["v_mse"] and report["baseline"] == "tome:mlp:0.5"
    assert 0 < report["cost"]["tome:mlp:0.5"]["gflop"] < report["cost"]["dense"]["gflop"]


def test_eval_judges_what_is_painted_and_that_nothing_else_is(repainted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inpainting, "_ROUNDS", 1)
    monkeypatch.setattr(networks, "hps_score", lambda path, device: Length())
    monkeypatch.setattr(networks, "Inception", Corners)
    few = ["--samples", 6, "--steps", 2, "--batch", 2, "--picture", tmp_path / "x.png"]
    few += ["--hps-weights", tmp_path / "hps.pt", "--fid-weights", tmp_path / "fid.pth"]
    few += ["--keep-samples", tmp_path / "kept"]
    report = json.loads(told(eval_command, repainted, "--json", *few).stdout)
    assert (tmp_path / "x.png").is_file() and (tmp_path / "kept" / "hidden" / "000005.png").is_file()
    assert (report["system"], report["masks"]) == ("lazy", "mixed")
    for column in ("quality", "dense", "hidden"):
        assert report[column]["outside_differing"] == 0 and report[column]["hole_error"] > 0
        assert set(report[column]["accuracy"]) == {"digit"} and report[column]["frechet"] > 0
        assert report[column]["hps_by_sample"] == [1.0] * 6  # digits' captions
        assert report[column]["fid_reference"] == len(load_dataset("digits", split="held_out"))
    assert report["quality"]["hole_error"] != report["hidden"]["hole_error"]
    assert report["not_judged"] == ["CLIP score (--clip-weights)"]
    assert report["quality"]["v_mse"] != report["dense"]["v_mse"] and "v_mse" not in report["hidden"]
    cost, edit = report["cost"], report["edit"]
    assert edit["encoder_milliseconds"] > 0 and 0 < edit["hole"] < 1
    assert 0 < cost["sparse"]["gflop"] < cost["all_tokens"]["gflop"]
    monkeypatch.setenv("COLUMNS", "200")
    print_report(report)
    shown = capsys.readouterr().out
    for words in (
        "pixels outside that differ",
        "hidden: the control",
        "its encoder",
        "not judged: CLIP score",
        "HPSv2",
    ):
        assert words in shown


def test_a_run_begins_with_the_weights_of_an_earlier_one(repainted, tiny, tmp_path):
    given = INPAINT | {"pretrained_model_name_or_path": str(repainted / "final")}
    begun, earlier = load_base(tiny.arguments(tmp_path, **given)).model, load_run(repainted)[0].state_dict()
    assert begun.state_dict() and all(torch.equal(earlier[name], x) for name, x in begun.state_dict().items())


def test_sample_names_the_command_that_repaints(repainted, tmp_path):
    refused = told(sample, repainted, "--out", tmp_path / "x.png")
    assert refused.exit_code == 2 and "it repaints a part of a picture: diffratio inpaint" in refused.output


def test_a_step_costs_what_its_regions_cost_on_average(tiny, monkeypatch):
    model = system_of("image").from_pixart(tiny.make("pixart"))
    step, seen = inpainting.RepaintingStep(model, system_of("image"), batch=1, text_tokens=4), []
    cost = {"milliseconds": 8.0, "gflop": 4.0, "peak_megabytes": 2.0}
    monkeypatch.setattr(inpainting, "compare", lambda *_, **__: {"dense": dict(cost)})
    apply_diffratio(model, DiffRatioConfig(0.3, num_regions=4))
    model.register_forward_pre_hook(
        lambda _, args, given: seen.append(int(given["timestep"])), with_kwargs=True
    )
    step(model)
    assert seen == [125, 375, 625, 875]  # the middle of each
    assert step.cost(model, progress=False)["dense"] == cost | {"milliseconds": 2.0, "gflop": 1.0}
    one = torch.arange(64).view(1, 1, 8, 8) == 27
    step = inpainting.RepaintingStep(model, system_of("image"), batch=2, text_tokens=4, mask=one)
    assert step.once() == {"hole": 1 / 16}  # of the tokens


@pytest.fixture(scope="module")
def twins():
    """The judge of 240 twins, and a model of the system lazy."""
    model = system_of("lazy").from_pixart(load_pixart(PRETRAINED["shapes"]))
    given = dataclasses.asdict(TrainArguments(task="inpaint", train_mode="full"))
    target = Target(
        model, "x", "twins", schedule=noise_schedule(), run={"arguments": given, "latents": False}
    )
    return inpainting.Repainting.of(target, SampleSettings(samples=240), progress=False), target


def test_holes_get_noise_of_their_own_and_the_control_sees_nothing(twins, monkeypatch):
    judge, target = twins
    pictures, seeds, shown = load_dataset("twins", split="held_out").batch(range(240))["pixel_values"], [], []

    def paint(system, model, edit, text, how, **_):
        seeds.extend(one.initial_seed() for one in how.generator)
        shown.append(edit.clean)
        return edit.clean

    monkeypatch.setattr(pipeline, "paint", paint)
    made = judge.samples(target)
    assert torch.allclose(made, pictures, atol=1e-6) and len(set(seeds)) == 240
    assert torch.allclose(torch.cat(shown), pictures, atol=1e-6)
    made = judge.blind().samples(target)
    assert torch.allclose(made, pictures.masked_fill(judge.mask, 0), atol=1e-6) and seeds[:240] == seeds[240:]
    assert not torch.cat(shown[len(shown) // 2 :]).any()


def test_holes_are_painted_by_the_settings_and_the_target_s_noise(twins, monkeypatch):
    judge, target = twins
    found, texts = set(), []

    def paint(system, model, edit, text, how, **_):
        own = how.scheduler.config
        found.add((how.steps, how.guidance, own.variance_type, own.prediction_type))
        texts.append(text.tokens)
        return edit.clean

    monkeypatch.setattr(pipeline, "paint", paint)
    monkeypatch.setattr(judge, "settings", SampleSettings(240, 0, 7, 3.0, "ddpm"))
    monkeypatch.setattr(target.model, "out_channels", 6)  # a variance, too
    judge.samples(dataclasses.replace(target, schedule=DDPMScheduler()))
    assert found == {(7, 3.0, "learned_range", "epsilon")}
    tokens = load_dataset("twins", split="held_out").batch(range(240))["tokens"]
    assert torch.equal(torch.cat(texts), tokens)


def test_errors_are_told_by_quarters_of_the_noise(twins, monkeypatch):
    judge, target = twins

    def quarter(self, model, batch):
        return (4 * batch["timestep"] // 1000).float()

    monkeypatch.setattr(inpainting.InpaintObjective, "__call__", quarter)
    assert judge._errors(target) == {"v_mse": 1.5, "v_mse_by_quartile": [0, 1, 2, 3]}


def test_twins_match_where_the_hole_holds_one_and_by_chance_where_it_holds_another(twins, monkeypatch):
    """`accuracy_joint` is P(match): of 4 shapes in 6 colours."""
    judge, target = twins
    monkeypatch.setattr(inpainting.Repainting, "_errors", lambda self, target: {})
    assert judge.why_not(target) is None
    assert (judge.mask.flatten(1).sum(1) == 14 * 14).all(), "one twin's quarter, whatever the run's masks"
    whole = load_dataset("twins", split="held_out").batch(range(240))["pixel_values"]
    own = whole.clone()
    exact = judge.figures(target, own)
    assert exact["accuracy_joint"] == 1 and exact["hole_error"] == 0 and exact["outside_differing"] == 0
    assert exact["frechet"] == pytest.approx(judge.real["frechet"])
    by_mask = judge.mask.flatten(1).float().argmax(1)
    for place in by_mask.unique():  # what lies in another image's hole at the same place
        rows = (by_mask == place).nonzero().flatten()
        inside = judge.mask[rows].expand_as(own[rows])
        own[rows] = torch.where(inside, own[rows.roll(1)], own[rows])
    swapped = judge.figures(target, own)
    inside = judge.mask.expand_as(own)
    each = [(a - b)[where].square().mean() for a, b, where in zip(own, whole, inside, strict=True)]
    assert swapped["outside_differing"] == 0
    assert swapped["hole_error"] == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)
    assert 0 < swapped["accuracy_joint"] < 0.12 and swapped["accuracy"]["colour"] < 0.3
    top, left = (~judge.mask[0, 0]).nonzero()[0].tolist()
    own[0, :, top, left] += 0.5
    assert judge.figures(target, own)["outside_differing"] == 1
