"""What is built in or lies on disk is never asked of a hub: a command that looks for one ends at once.

So does every command of the other tests here.
"""

import shutil

import pytest

from diffratio.names import is_hub_id, located, on_disk
from diffratio.toy import PRETRAINED

NETWORK = 99
SHORT = ["--max_train_steps", "1", "--rank", "2", "--train_batch_size", "2", "--report_to", "none"]


def train(terminal, home, model, data, out):
    names = ["--pretrained_model_name_or_path", model, "--dataset_name", data, "--output_dir", f"hub/{out}"]
    return terminal(home, "train", *names, *SHORT)


def test_the_guard_sees_what_a_hub_is_asked(terminal, home):
    ended = train(terminal, home, "someone/model", "photos", "control")
    assert ended.status == NETWORK and "network: socket.getaddrinfo ('huggingface.co'" in ended.err


def test_images_that_a_built_in_model_cannot_draw_are_refused_at_once(terminal, home):
    ended = train(terminal, home, "digits", "photos", "grey")
    words = "dataset_name='photos' has images of 3 channels, the built-in model 'digits' draws 1 channel"
    assert ended.status == 1 and f"{words}; shapes draws 3\n" in ended.err
    ended = train(terminal, home, "shapes", "digits", "colour")
    assert ended.status == 1 and "'digits' has images of 1 channel, the built-in model 'shapes'" in ended.err


def test_a_model_on_disk_without_a_vae_is_not_looked_for_elsewhere(terminal, home):
    shutil.copytree(PRETRAINED["digits"], home / "grey model")
    ended = train(terminal, home, "grey model", "photos", "disk")
    assert ended.status == 1 and "pretrained_model_name_or_path='grey model' needs a vae" in ended.err
    (home / "grey model" / "config.json").unlink()
    ended = train(terminal, home, "grey model", "photos", "no-config")
    assert ended.status == 1 and "'grey model' holds no transformer" in ended.err


@pytest.mark.parametrize(
    "model, data, words",
    [
        ("./modle", "photos", "pretrained_model_name_or_path='./modle' is no folder"),
        ("shapes", "fotos/", "dataset_name='fotos/': name_or_path='fotos/' is no folder"),
        ("shapes", "photos/metadata.jsonl", "is a file, not a folder of images"),
    ],
)
def test_a_path_that_is_not_there_is_told_at_once(model, data, words, terminal, home):
    ended = train(terminal, home, model, data, "wrong")
    assert ended.status == 1 and words in ended.err


def test_names_of_a_hub_and_paths_are_told_apart(tmp_path, monkeypatch):
    assert all(map(is_hub_id, ("imdb", "PixArt-alpha/PixArt-XL-2-512x512", "a_b/c.d")))
    assert not any(map(is_hub_id, ("photos/", "./photos", "../x", "/x", "~/x", "a/b/c", "", "a b", ".")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert on_disk("photos") and located("photos") == str(tmp_path / "photos") and located("other") == "other"
