"""Two processes under `accelerate launch`: the gradients of one process, and an end for all when one dies."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file

from diffratio.train import ArgumentError, Trainer, load_run, sharding

SCRIPT = Path(__file__).with_name("processes.py")


def script():
    spec = importlib.util.spec_from_file_location("diffratio_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def launched(tiny, tmp_path_factory):
    """The folder of both processes and the seconds from the death of one to the end of all."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", str(port)]
    given += ["--mixed_precision", "no", "--dynamo_backend", "no", SCRIPT, folder, tiny.root / "pixart"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *map(str, given)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(launch, stderr=subprocess.PIPE, text=True, env=environment)
    errors = process.communicate(timeout=300)[1]
    end = time.time()
    killed = folder / "killed"
    assert killed.is_dir(), errors
    assert process.returncode != 0
    return folder, end - (killed / "process-1").stat().st_mtime


def test_ddp_and_fsdp_give_the_gradients_of_one_process(launched, tiny, tmp_path):
    module = script()
    one = Trainer(
        tiny.arguments(tmp_path, **module.SETTINGS | {"train_batch_size": 4}),
        progress=False,
    )
    wanted = module.gradients(one)
    scale = max(gradient.abs().max() for gradient in wanted.values())
    for name in ("ddp", "fsdp"):
        found = load_file(launched[0] / f"{name}.safetensors")
        assert set(found) == set(wanted)
        for key, gradient in wanted.items():
            torch.testing.assert_close(
                found[key], gradient, rtol=1e-3, atol=1e-6 * scale.item(), msg=f"{name} {key}"
            )


def test_a_sharded_run_resumes_bit_by_bit(launched):
    first, again = (load_file(launched[0] / f"{name}.safetensors") for name in ("fsdp", "resumed"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_results_load_and_took_the_same_steps(launched, tiny):
    assert load_run(launched[0] / "lora")[1]["validation_loss"] > 0
    for name in ("ddp", "fsdp"):
        info = load_run(launched[0] / name)[1]
        assert info["processes"] == 2 and info["step"] == 2
    start = PixArtTransformer2DModel.from_pretrained(tiny.root / "pixart", subfolder="transformer")

    def moved(name, step=None):
        """All that training changed in the weights, [P]."""
        after = load_run(launched[0] / name, step)[0].state_dict()
        return torch.cat([(after[key] - before).flatten() for key, before in start.state_dict().items()])

    wanted = moved("ddp")
    assert (moved("fsdp") - wanted).norm() < 1e-3 * wanted.norm()
    assert (moved("fsdp", 1) - wanted).norm() > 0.3 * wanted.norm(), "one step less would be seen"


def test_a_killed_process_ends_the_other_within_a_minute(launched):
    folder, seconds = launched
    assert seconds < 60
    for number in (0, 1):
        assert not psutil.pid_exists(int((folder / f"killed/process-{number}").read_text()))
    steps = [json.loads(line)["step"] for line in (folder / "killed/log.jsonl").read_text().splitlines()]
    assert steps == [0, 1]


def test_what_fsdp_cannot_do_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "is_sharded", lambda _: True)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(ArgumentError, match="^use_ema=True is not supported with FSDP"):
        tiny.train(tmp_path, use_ema=True)
    monkeypatch.setattr(Accelerator, "is_fsdp2", False)
    with pytest.raises(
        ArgumentError, match="^FSDP of version 1 is not supported: accelerate launch --fsdp_version 2"
    ):
        tiny.train(tmp_path)


def test_writing_a_sharded_model_consumes_no_randomness(tiny, tmp_path, monkeypatch):
    """The states of the generators lie in the checkpoint before the model is written."""
    one = Trainer(tiny.arguments(tmp_path, train_mode="lora", rank=4), progress=False)
    monkeypatch.setattr(sharding, "is_sharded", lambda _: True)
    before = torch.get_rng_state()
    one.save_adapter(tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), before)
