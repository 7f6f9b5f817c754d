"""What two processes do: `processes.py FOLDER MODEL`, under `accelerate launch`.

accelerate shards on accelerators alone. Its FSDP runs on gloo just as well, once the state says so.
"""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from torch import Tensor

from diffratio.train import TrainArguments, Trainer, data, trainer

SETTINGS = {
    "dataset_name": "digits",
    "max_train_steps": 2,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 1,
    "validation_steps": 2,
    "train_mode": "full",
    "report_to": "none",
    "learning_rate": 1e-3,
    "max_grad_norm": 1e9,
    "method": "lt",
    "target_compression": 0.25,
}


def gradients(one: Trainer) -> dict[str, Tensor]:
    """Run the training; returns the gradients of its last step, whole."""
    found = {}
    step = one.optimizer.step

    def recording_step(**options):
        if one.accelerator.sync_gradients:
            for name, parameter in one.state.model.named_parameters():
                gradient = parameter.grad
                whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                found[name.removeprefix("module.")] = whole.clone()
        step(**options)

    one.optimizer.step = recording_step
    one.fit()
    return found


@contextmanager
def sharding():
    """Accelerators made inside shard the model, as after `accelerate launch --use_fsdp --fsdp_version 2`."""

    def make(**options) -> Accelerator:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        made = Accelerator(**options, fsdp_plugin=plugin)
        made.state.fsdp_plugin = plugin
        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return made

    trainer.Accelerator = make
    try:
        yield
    finally:
        trainer.Accelerator = Accelerator


def fresh() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def main(folder: Path, model: str) -> None:
    torch.set_num_threads(1)
    PartialState.destroy_process_group = lambda *_: None  # the next training needs it too
    data.VALIDATION_IMAGES = 8

    def run(name, **changes):
        given = SETTINGS | {"pretrained_model_name_or_path": model, "train_batch_size": 2} | changes
        return Trainer(TrainArguments(output_dir=str(folder / name), **given), progress=False)

    one = run("ddp")
    assert (
        one.accelerator.distributed_type == DistributedType.MULTI_CPU and one.accelerator.num_processes == 2
    )
    found = {"ddp": gradients(one)}
    fresh()
    with sharding():
        one = run("fsdp", gradient_checkpointing=True)
        found["fsdp"] = gradients(one)
        assert any(hasattr(parameter, "full_tensor") for parameter in one.state.model.parameters())
        assert not hasattr(one.state.controller.table.ratios, "full_tensor")
        fresh()
        found["resumed"] = gradients(
            run("fsdp", gradient_checkpointing=True, resume_from_checkpoint="checkpoint-1")
        )
        fresh()
        run("lora", train_mode="lora", rank=4, mixed_precision="bf16", max_train_steps=1).fit()
    for name, tensors in found.items():
        if one.accelerator.is_main_process:
            save_file(tensors, folder / f"{name}.safetensors")
    fresh()
    die_in_step(2, run("killed", max_train_steps=10_000))


def die_in_step(step: int, one: Trainer) -> None:
    """Train; the last process dies as the kernel kills, without a word to the others."""
    (one.output.root / f"process-{one.accelerator.process_index}").write_text(str(os.getpid()))
    finish = one._finish_step

    def dying(losses):
        if one.accelerator.is_last_process and one.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return finish(losses)

    one._finish_step = dying
    one.fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
