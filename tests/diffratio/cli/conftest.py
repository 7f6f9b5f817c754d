"""Commands as typed by a user, outside of the checkout, and a run on a folder of the user's own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

TINY = ["--max_train_steps", "8", "--checkpointing_steps", "4", "--validation_steps", "8"]
TINY += ["--train_batch_size", "4", "--report_to", "none"]


@dataclass
class Ended:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Everything that was written, in one line, without the frame of an error."""
        return " ".join((self.out + self.err).replace("│", " ").split())


class Terminal:
    """`terminal(cwd, *words)` runs `diffratio *words` to its end, or until `interrupt_when()`: a Ctrl-C."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("as_typed.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"COLUMNS": "200", "HF_HOME": str(folder / "hub")},
        )

    def __call__(self, cwd: Path, *words, interrupt_when: Callable[[str], bool] | None = None) -> Ended:
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        request = {"words": [str(word) for word in words], "cwd": str(cwd), "out": str(out), "err": str(err)}
        request["terminal"] = interrupt_when is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if interrupt_when is not None:
            deadline = time.monotonic() + 60
            while not (err.exists() and interrupt_when(err.read_text())):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    raise AssertionError(err.read_text())
                time.sleep(0.002)
            os.kill(child, signal.SIGINT)
        return Ended(int(self._server.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


@pytest.fixture(scope="session")
def terminal(tmp_path_factory):
    terminal = Terminal(tmp_path_factory.mktemp("terminal"))
    yield terminal
    terminal.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A working directory with `photos`: 40 drawings and their captions."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    rows = []
    for i in range(40):
        colour, shape = ("red", "green", "blue")[i % 3], ("circle", "box")[i % 2]
        image = Image.new("RGB", (48, 40), "gray")
        draw = ImageDraw.Draw(image)
        (draw.ellipse if shape == "circle" else draw.rectangle)((8 + i % 9, 8, 28 + i % 9, 28), fill=colour)
        image.save(home / "photos" / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": f"a {colour} {shape}"}))
    (home / "photos" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return home


@pytest.fixture(scope="session")
def own(terminal, home) -> tuple[Path, Ended]:
    """A run on the photos, named as one does in their own folder, and what was said of it."""
    names = ["--pretrained_model_name_or_path", "shapes", "--dataset_name", "photos"]
    ended = terminal(home, "train", *names, "--output_dir", "out/own", "--train_mode", "full", *TINY)
    assert ended.status == 0, ended.err
    return home / "out" / "own", ended
