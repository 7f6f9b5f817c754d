"""A folder that cannot be written, and a disk that fills up: a clear error, and nothing is lost."""

import resource
from contextlib import contextmanager

import pytest

from diffratio.train import ArgumentError, Trainer, load_run
from diffratio.train.checkpoints import Checkpoints


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_loaded(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="^output_dir=.*file.* cannot be written: Not a directory"):
        tiny.train(tmp_path / "file" / "run", pretrained_model_name_or_path="no/such/model")


@contextmanager
def largest_file(size):
    """The kernel refuses to let files grow beyond `size`, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_keeps_the_checkpoints(tiny, tmp_path):
    tiny.train(tmp_path, method="mod", max_train_steps=3)
    size = (tmp_path / "checkpoint-3/optimizer.bin").stat().st_size
    with largest_file(size - 1), pytest.raises(ArgumentError, match="^output_dir: .*-6 could not be written"):
        tiny.train(tmp_path, method="mod", resume_from_checkpoint="latest")
    assert Checkpoints(tmp_path).steps() == [3] and Checkpoints(tmp_path).why_broken(3) is None
    assert not list(tmp_path.glob(".*"))
    assert tiny.train(tmp_path, method="mod", resume_from_checkpoint="latest")["step"] == 6
    assert load_run(tmp_path)[1]["step"] == 6


def test_a_log_that_cannot_grow_is_an_error_of_output_dir(tiny, tmp_path, monkeypatch):
    def full(self, entry):
        raise OSError(28, "No space left on device")

    trainer_log = "diffratio.train.output.Output.log"
    monkeypatch.setattr(trainer_log, full)
    with pytest.raises(
        ArgumentError, match="^output_dir=.*: No space left on device.*resume_from_checkpoint"
    ):
        tiny.train(tmp_path, method="dense")
    monkeypatch.setattr(
        trainer_log, lambda self, entry: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(OSError, match="Input/output error"):
        Trainer(tiny.arguments(tmp_path / "other", method="dense"), progress=False).fit()
