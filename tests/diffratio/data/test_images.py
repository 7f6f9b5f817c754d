import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffratio.data import load_dataset
from diffratio.data.text import WordEmbeddings


def save(path: Path, grey: int, size=(48, 32)) -> None:
    """An image whose centred square is grey and whose ends are red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 8:-8] = grey
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images, grey level 10 i, with captions in metadata.jsonl, listed backwards."""
    for i in range(20):
        save(tmp_path / f"{i:02}.png", 10 * i)
    rows = [{"file_name": f"{i:02}.png", "text": f"number {i}", "other": [f"n{i}"]} for i in range(20)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[::-1])))
    return tmp_path


def test_metadata_gives_captions_and_every_tenth_image_is_held_out(folder: Path):
    train, held_out = (load_dataset(folder, split=split, resolution=16) for split in ("train", "held_out"))
    assert len(train) == 18 and held_out.captions([0, 1]) == ["number 19", "number 9"]
    assert not set(train.captions(range(18))) & set(held_out.captions(range(2)))
    batch = held_out.batch([0, 1])
    assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch["attributes"].shape == (2, 0)
    torch.testing.assert_close(batch["pixel_values"][1], torch.full((3, 16, 16), 90 / 127.5 - 1))
    assert torch.equal(batch["tokens"], WordEmbeddings()(["number 19", "number 9"]))


def test_the_caption_column_and_the_encoder_can_be_chosen(folder: Path):
    def lengths(captions):
        return torch.tensor([float(len(c)) for c in captions]).view(-1, 1, 1).expand(-1, 3, 2)

    images = load_dataset(
        str(folder), split="held_out", resolution=16, caption_column="other", text_encoder=lengths
    )
    assert images.captions([0]) == ["n19"]
    assert (images.text_tokens, images.text_width) == (3, 2) and not images.null_tokens.any()
    assert images[0]["tokens"].tolist() == [[3.0, 3.0]] * 3


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\u00a0"])
def test_a_caption_of_the_web_is_one_line_of_metadata(mark: str, tmp_path: Path):
    rows = [{"file_name": f"{i}.png", "text": f"a{mark}cat {i}"} for i in range(3)]
    for row in rows:
        save(tmp_path / row["file_name"], 10)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load_dataset(tmp_path, resolution=16).captions([0, 1]) == [f"a{mark}cat 1", f"a{mark}cat 2"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n", "\n  \n"])
def test_a_file_of_windows_is_read_as_any_other(end: str, tmp_path: Path):
    for i in range(3):
        save(tmp_path / f"{i}.png", 10)
    rows = [json.dumps({"file_name": f"{i}.png", "text": f"Käse {i}"}) for i in range(3)]
    (tmp_path / "metadata.jsonl").write_bytes(("\r\n".join(rows) + end).encode("utf-8-sig"))
    assert load_dataset(tmp_path, resolution=16).captions([0, 1]) == ["Käse 1", "Käse 2"]
    (tmp_path / "metadata.jsonl").unlink()
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(f"Käse {i}{end}".encode("utf-8-sig"))
    assert load_dataset(tmp_path, resolution=16).captions([0, 1]) == ["Käse 1", "Käse 2"]
    (tmp_path / "1.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(ValueError, match="caption file .*1.txt cannot be read as UTF-8"):
        load_dataset(tmp_path, resolution=16)


def test_metadata_may_be_a_table(tmp_path: Path):
    for i in range(3):
        save(tmp_path / f"{i}.png", 10)
    table = 'file_name,text,other\n0.png,plain,\n1.png,"two\nlines, and ""more""",x\n\n2.png,last,x,y\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode("utf-8-sig"))
    images = load_dataset(tmp_path, resolution=16)
    assert images.captions([0, 1]) == ['two\nlines, and "more"', "last"]
    assert load_dataset(tmp_path, resolution=16, caption_column="other").captions([0]) == ["x"]
    for line, words in (("3.png,none", "line 7: no such file: 3.png"), ("0.png", "text of .* is not text")):
        (tmp_path / "metadata.csv").write_text(table + line)
        with pytest.raises(ValueError, match=words):
            load_dataset(tmp_path, resolution=16)
    (tmp_path / "metadata.csv").write_text(table + "0.png," + "x" * 200_000)
    with pytest.raises(ValueError, match=r"metadata.csv, line \d: not CSV \(field larger"):
        load_dataset(tmp_path, resolution=16)


def test_what_a_system_hides_beside_images_is_not_looked_at(folder: Path):
    for name in ("._00.png", ".thumbnails/00.png", "__MACOSX/._00.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    (folder / "metadata.jsonl").unlink()
    for i in range(20):
        (folder / f"{i:02}.txt").write_text(f"number {i}")
    assert len(load_dataset(folder, resolution=16)) == 18


def test_any_caption_has_text(folder: Path):
    images = load_dataset(folder, resolution=16)
    assert torch.equal(images.encode(["number 3"]), WordEmbeddings()(["number 3"]))
    held_out = load_dataset("digits", split="held_out")
    assert torch.equal(held_out.encode(held_out.captions(range(9))), held_out.batch(range(9))["tokens"])
    shapes = load_dataset("shapes", split="held_out")
    assert torch.equal(shapes.encode(shapes.captions(range(50))), shapes.batch(range(50))["tokens"])
    for data, prompt, words in (
        (held_out, "1 or 2", "must name one digit from 0 to 9"),
        (held_out, "12", "must name one digit"),
        (shapes, "a large red circle on stripes", "must name one position: upper left"),
        (shapes, "a large red green circle", "must name one colour: red, green"),
    ):
        with pytest.raises(ValueError, match=f"^prompt='{prompt}' {words}"):
            data.encode([prompt])


def test_text_files_and_split_folders(tmp_path: Path):
    for split, grey in (("train", 100), ("validation", 200)):
        save(tmp_path / split / "a.png", grey)
        (tmp_path / split / "a.txt").write_text(f" in {split}\n")
    train, held_out = (load_dataset(tmp_path, split=split, resolution=16) for split in ("train", "held_out"))
    assert train.captions([0]) == ["in train"] and held_out.captions([0]) == ["in validation"]
    (tmp_path / "validation" / "b.webp").write_bytes((tmp_path / "train" / "a.png").read_bytes())
    with pytest.raises(ValueError, match="caption file .*b.txt cannot be read"):
        load_dataset(tmp_path, split="held_out", resolution=16)


def test_folders_of_classes_give_labels(tmp_path: Path):
    for i, name in enumerate(["cat", "dog"] * 6):
        save(tmp_path / name / f"{i:02}.png", 10)
    images = load_dataset(tmp_path, resolution=16)
    assert images.attribute_names == ("class",) and images.attribute_sizes == (2,)
    captions = images.captions(range(len(images)))
    classes = images.batch(range(len(images)))["attributes"][:, 0].tolist()
    assert [["cat", "dog"][c] for c in classes] == captions and set(captions) == {"cat", "dog"}


def test_folders_with_the_same_captions_have_names_of_their_own(tmp_path: Path):
    """By its name a data set's classifier is found again, and so is what was encoded of it."""
    for folder, first in (("a", 0), ("b", 100), ("moved", 0)):
        for i, name in enumerate(["cat", "dog"] * 6, first):
            save(tmp_path / folder / name / f"{i:02}.png", 10)
    a, b, moved = (load_dataset(tmp_path / name, resolution=16) for name in ("a", "b", "moved"))
    assert a.captions(range(10)) == b.captions(range(10)) and a.name == moved.name != b.name
    save(tmp_path / "moved" / "dog" / "01.png", 10, size=(480, 320))
    assert a.name != load_dataset(tmp_path / "moved", resolution=16).name


def test_a_class_has_one_label_in_all_splits(tmp_path: Path):
    for split, names in (("train", ["cat", "dog", "eel"]), ("test", ["dog", "eel"])):
        for name in names:
            save(tmp_path / split / name / "0.png", 10)
    train, held_out = (load_dataset(tmp_path, split=split, resolution=16) for split in ("train", "held_out"))
    assert train.attribute_sizes == held_out.attribute_sizes == (3,)
    assert held_out.batch([0, 1])["attributes"][:, 0].tolist() == [1, 2]


def test_images_without_captions_and_broken_images_are_named(tmp_path: Path):
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png", 10)
    with pytest.raises(ValueError, match=f"folder {tmp_path} has no captions: metadata.jsonl or"):
        load_dataset(tmp_path, resolution=16)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    (tmp_path / "c.png").write_text("no image")
    images = load_dataset(tmp_path, resolution=16)
    for row, name in enumerate("bc"):
        with pytest.raises(ValueError, match=f"image .*{name}.png cannot be read"):
            images[row]


def test_a_photograph_stands_upright(tmp_path: Path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    turned = Image.Exif()
    turned[0x112] = 3  # upside down
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=turned)
        (tmp_path / f"{name}.txt").write_text(name)
    image = load_dataset(tmp_path, resolution=16)[0]["pixel_values"]
    assert (image[:, :8] == -1).all() and (image[:, 8:] == 1).all()


def test_sixteen_bits_of_grey_keep_their_levels(tmp_path: Path):
    levels = np.repeat(np.array([0, 257 * 100, 65535, 257 * 50], np.uint16), 4)
    for name in ("a.png", "b.png"):
        (tmp_path / name).with_suffix(".txt").write_text("ramp")
        Image.fromarray(np.tile(levels, (16, 1))).save(tmp_path / name)
    image = load_dataset(tmp_path, resolution=16)[0]["pixel_values"]
    found = ((image[:, 0, 1::4] + 1) * 127.5).round()
    assert found.tolist() == [[0, 100, 255, 50]] * 3


def test_words_are_told_apart_by_value_and_place():
    embed = WordEmbeddings()
    one, other, again = embed(["A red cross", "cross red a", "a RED cross!"])
    assert torch.equal(one, again) and one.shape == (16, 64)
    assert not torch.allclose(one[0], other[0]) and torch.equal(one[1], other[1])
    assert torch.equal(one[3:], embed([""])[0, 3:])
    assert embed(["w " * 40]).shape == (1, 16, 64)


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"file_name": "00.png", "caption_": 1}', "caption_column: .*line 21 has no text or caption"),
        ('{"text": "x"}', "line 21: no file_name"),
        ('{"file_name": "missing.png", "text": "x"}', "line 21: no such file: missing.png"),
        ('{"file_name": "00.png", "text": 3}', "caption_column: text of .*line 21 is not text"),
        ("{", "line 21: not JSON"),
    ],
)
def test_a_bad_line_of_metadata_is_named(folder: Path, line: str, words: str):
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text() + "\n" + line)
    with pytest.raises(ValueError, match=words):
        load_dataset(folder, resolution=16)


def test_bad_folders_and_resolutions_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="resolution must be a multiple of 16, or less, got 40"):
        load_dataset(folder, resolution=40)
    with pytest.raises(ValueError, match="caption_column: .* has no title, only file_name, text, other"):
        load_dataset(folder, caption_column="title")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="folder .*empty holds no image"):
        load_dataset(empty)
    save(empty / "cat" / "only.png", 10)
    with pytest.raises(ValueError, match="a data set of 1 images cannot be split"):
        load_dataset(empty)
    (empty / "train").mkdir()
    with pytest.raises(ValueError, match="split='held_out' has no folder"):
        load_dataset(empty, split="held_out")


def test_an_image_column_is_for_data_sets_with_columns(folder: Path):
    for name in ("digits", folder):
        with pytest.raises(ValueError, match="image_column is not for .* which has no columns of images"):
            load_dataset(name, image_column="photo")


def test_without_the_datasets_package_a_name_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="name_or_path='some/data' .* pip install datasets"):
        load_dataset("some/data")


class Rows(list):
    """The part of `datasets.Dataset` that is read."""

    @property
    def column_names(self):
        return list(self[0])

    def remove_columns(self, name: str):
        return Rows({key: value for key, value in row.items() if key != name} for row in self)


def test_a_data_set_of_the_datasets_package(monkeypatch):
    def rows(count: int, grey: int) -> Rows:
        return Rows(
            {"image": Image.new("L", (20, 20), grey), "caption": [f"{grey} {i}", "?"]} for i in range(count)
        )

    stored = {"both": {"train": rows(20, 9), "test": rows(3, 7)}, "one": {"train": rows(20, 9)}}

    def load(name: str):
        if name not in stored:
            raise FileNotFoundError("nothing of the kind")
        return stored[name]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert [len(load_dataset("both", split=s, resolution=16)) for s in ("train", "held_out")] == [20, 3]
    held_out = load_dataset("one", split="held_out", resolution=16)
    assert held_out.captions(range(2)) == ["9 0", "9 10"]
    assert (held_out[1]["pixel_values"] == torch.tensor(9) / 127.5 - 1).all()
    stored["valid"] = {"train": rows(20, 9), "valid": rows(4, 7)}
    assert len(load_dataset("valid", split="held_out", resolution=16)) == 4
    with pytest.raises(ValueError, match="name_or_path='none': nothing of the kind"):
        load_dataset("none")
    stored["bad"] = {"train": Rows([{"picture": 1}, {"picture": 2}])}
    with pytest.raises(ValueError, match="image_column='image' must be one of picture"):
        load_dataset("bad")
    stored["photos"] = {
        "train": Rows({"photo": row["image"], "text": "x"} for row in rows(20, 9)),
    }
    assert len(load_dataset("photos", image_column="photo", resolution=16)) == 18
    stored["tested"] = {"test": rows(3, 7)}
    with pytest.raises(ValueError, match="name_or_path='tested' has no split train, only test"):
        load_dataset("tested")


def test_rows_are_kept_by_their_columns(monkeypatch):
    def row(i):
        scores = {"aesthetic": 4 + 0.1 * i, "language": "en" if i % 2 else "de", "similarity": str(i)}
        return {"image": Image.new("L", (20, 20), i), "text": str(i), **scores}

    def load(name):
        return {"train": Rows(map(row, range(30))), "test": Rows(map(row, range(8)))}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))

    def kept(keep_rows, split="train"):
        found = load_dataset("some", split=split, resolution=16, keep_rows=keep_rows)
        return found.captions(range(len(found)))

    with pytest.warns(UserWarning, match="keeps 10 of 30 rows of the split train of some"):
        assert kept("aesthetic >= 5.0,language=en") == [str(i) for i in range(11, 30, 2)]
    with pytest.warns(UserWarning, match="keeps 3 of 8 rows of the split held_out"):
        assert kept("similarity <= 2", "held_out") == ["0", "1", "2"]
    for keep_rows, words in (
        ("beauty >= 5", "row 0 of the split train of some has no column 'beauty', only text, aesthetic"),
        ("language >= 5", "language of row 0 .* is 'de', not a number"),
        ("aesthetic >= 99", "keeps 0 of 30 rows"),
        ("aesthetic", "'aesthetic' must be COLUMN"),
        ("aesthetic >= high", "'high' is not a number"),
        ("language == en", "'language == en' must be COLUMN"),
        ("language != en", "'language != en' must be COLUMN"),
        ("aesthetic => 5", "'aesthetic => 5' must be COLUMN"),
    ):
        with pytest.raises(ValueError, match=f"^keep_rows.*{words}"):
            kept(keep_rows)
    with pytest.raises(ValueError, match="^keep_rows is not for 'digits'"):
        load_dataset("digits", keep_rows="aesthetic >= 5")


def test_rows_without_a_value_and_nan_are_dropped(monkeypatch):
    values = [None, float("nan"), 6.0, 7.0]
    rows = Rows({"image": Image.new("L", (20, 20)), "text": str(x), "score": x} for x in values)
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda _: {"train": rows, "test": rows})
    )
    with pytest.warns(UserWarning, match="keeps 2 of 4"):
        assert load_dataset("some", resolution=16, keep_rows="score >= 6").captions([0, 1]) == ["6.0", "7.0"]
