"""A run on one's own images: what `train` says at its end, and that every other command takes the run."""

import json
import shlex
import shutil

import pytest

from diffratio.cli.train import duration, kept_lines, report
from diffratio.diffusion import noise_schedule
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.toy import PRETRAINED
from diffratio.train import load_run

EVAL = ["--samples", 4, "--steps", 1, "--batch", 1]
FEW = {"sample": ["--columns", 2, "--rows", 2, "--steps", 1], "eval": EVAL, "plot": EVAL[:4]}


def told(ended):
    assert ended.status == 0, ended.words
    return json.loads(ended.out)


def test_the_end_tells_what_was_learned_and_how_long_it_took(own):
    run, ended = own
    first, kept, header, *rows = ended.out.splitlines()
    assert first.startswith("out/own: 8 steps in ") and " s, validation v-MSE 0." in first
    assert kept.startswith("tokens kept, learned: 70.0% on average") and header.split() == [
        "layer",
        *"012345",
    ]
    learned = json.loads((run / "ratios.jsonl").read_text().splitlines()[-1])["ratios"]
    spans = [(0, 249), (250, 499), (500, 749), (750, 999)]
    for region, (low, high) in enumerate(spans):
        shown = [str(round(100 * layer[region])) for layer in learned]
        assert rows[region].split() == ["t", str(low), "to", str(high), *shown]


@pytest.mark.parametrize("command", ["plot", "sample", "eval"])
def test_what_the_end_says_to_type_next_runs_from_every_folder(command, own, terminal, tmp_path):
    run, ended = own
    line = next(line for line in ended.out.splitlines() if line.startswith(f"diffratio {command} "))
    words = shlex.split(line, comments=True)
    assert words == ["diffratio", command, "out/own"]
    ended = terminal(tmp_path, command, run, *FEW[command])
    assert ended.status == 0 and "no quality" not in ended.words, ended.words
    if command == "plot":
        names = ["own/trajectories.png", "own/regions.png", "own/maps.png", "quality.png"]
        assert all((tmp_path / "out/plots" / name).is_file() for name in names)


def test_the_run_knows_its_places(own, home):
    info = json.loads((own[0] / "run.json").read_text())
    assert (info["dataset"], info["resolution"]) == (str(home / "photos"), 32)
    assert info["base_model"] == "shapes" and info["arguments"]["dataset_name"] == "photos"


def test_prompts_are_drawn_a_row_each(own, terminal, tmp_path):
    prompts = ["--prompt", "a red circle", "--prompt", "what nobody has seen"]
    told_ = told(terminal(tmp_path, "sample", own[0], *prompts, "--columns", 2, "--steps", 1, "--json"))
    assert told_["captions"] == ["a red circle"] * 2 + ["what nobody has seen"] * 2
    assert (tmp_path / told_["picture"]).is_file()
    refused = terminal(tmp_path, "sample", own[0], *prompts, "--rows", 2)
    assert refused.status == 2 and "rows: not with prompt" in refused.words


def test_a_built_in_data_set_says_what_a_prompt_must_name(terminal, tmp_path):
    few = ["--columns", 2, "--steps", 1, "--json"]
    assert told(terminal(tmp_path, "sample", "digits", "--prompt", "a 7", *few))["captions"] == ["a 7"] * 2
    refused = terminal(tmp_path, "sample", "digits", "--prompt", "a cat", *few)
    assert refused.status == 2 and "prompt='a cat' must name one digit from 0 to 9" in refused.words
    refused = terminal(tmp_path, "sample", "shapes", "--prompt", "a large red circle", *few)
    assert refused.status == 2 and "must name one background: gradient, stripes" in refused.words


@pytest.fixture(scope="module")
def lora(terminal, home):
    """LoRA on a model in a folder, at another resolution than the one that it was made for."""
    shutil.copytree(PRETRAINED["shapes"], home / "base")
    noise_schedule().save_pretrained(home / "base" / "scheduler")
    names = ["--pretrained_model_name_or_path", "base", "--dataset_name", "photos"]
    settings = ["--resolution", 16, "--rank", 2, "--max_train_steps", 2, "--train_batch_size", 4]
    ended = terminal(home, "train", *names, "--output_dir", "lora", *settings, "--report_to", "none")
    assert ended.status == 0, ended.words
    return home / "lora"


def test_eval_shows_the_base_beside_dense_and_sparse(lora, terminal, tmp_path):
    ended = terminal(tmp_path, "eval", lora, *EVAL)
    assert ended.status == 0, ended.words
    header = next(line for line in ended.out.splitlines() if "real images" in line).split("┃")
    assert [name.strip() for name in header[2:-1]] == ["base", "dense", "sparse", "real images"]
    assert "v-MSE" in ended.out and "base: the model that the run started from" in ended.out


def test_a_folder_that_was_moved_is_read_at_the_resolution_of_the_run(lora, terminal, home, tmp_path):
    moved = shutil.copytree(home / "photos", tmp_path / "moved")
    report = told(terminal(tmp_path, "eval", lora, *EVAL, "--dataset", "moved", "--json"))
    assert report["dataset"] == str(moved)
    base, dense, sparse = (report[name]["v_mse"] for name in ("base", "dense", "quality"))
    assert dense != sparse and base == pytest.approx(dense, rel=0.05)  # LoRA of two steps
    shape = TransformerShape.from_model(load_run(lora)[0], 16, 16, text_tokens=16)
    assert report["cost"]["dense"]["gflop"] == transformer_flops(shape).total / 1e9


def test_a_model_without_a_run_takes_images_of_its_own_size(terminal, home):
    few = ["--columns", 2, "--rows", 1, "--steps", 1, "--json"]
    captions = told(terminal(home, "sample", "shapes", "--dataset", "photos", *few))["captions"]
    assert captions == ["a red circle", "a green circle"]


def run_of(**changes):
    arguments = {"output_dir": "x", "method": "lt", "target_compression": 0.3}
    arguments |= {name: value for name, value in changes.items() if name in arguments}
    facts = {"step": 1, "seconds": 1.0, "loss": "v-MSE", "validation_loss": 0.5, "latents": False}
    return facts | {"arguments": arguments} | {n: v for n, v in changes.items() if n not in arguments}


def test_a_run_on_latents_is_drawn_in_its_pipeline():
    lines = report(run_of(latents=True, ratios=[[0.5], [0.9]]))
    assert not any(line.startswith("diffratio sample") for line in lines)
    assert lines[-1].startswith("pipe.transformer, _ = diffratio.train.load_run('x')")
    assert lines[3].split() == ["t", "0", "to", "999", "50", "90"]


def test_runs_that_learn_no_ratios_tell_none():
    assert kept_lines(run_of(method="mod")) == ["tokens kept in every layer: 70%"]
    clean = run_of(method="mod")
    clean["arguments"]["dense_regions"] = 1
    assert kept_lines(clean) == ["tokens kept on average: 70%"]
    assert kept_lines(run_of(method="dense")) == []


@pytest.mark.parametrize("seconds, words", [(7.6, "8 s"), (133, "2 min 13 s"), (11100, "3 h 5 min")])
def test_durations_are_told_in_words(seconds, words):
    assert duration(seconds) == words
