"""The arguments of a training run: the command line, the checks and `run.json` all follow from this class."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields
from typing import NoReturn

from diffratio_kernels._checks import RESCALE
from diffratio_kernels.blocks.bins import DEFAULT_BINS, ROUNDINGS
from diffratio_kernels.blocks.router import STARTS

from .recipes import RECIPES

TASKS = ("t2i", "inpaint")
SYSTEMS, MASKS = ("lazy", "image", "crop"), ("mixed", "object", "dilated", "box", "strokes")
"""Of diffratio.inpainting, whose names are asked for where diffusers need not be."""
METHODS = ("dense", "mod", "l", "lt")
FLOW_SCHEMES = ("logit_normal", "none")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


class ArgumentError(ValueError):
    """A value that cannot be used; the text begins with the name of the argument."""


def _arg(default, text: str, choices: tuple[str, ...] | None = None, least=None, most=None):
    return field(default=default, metadata={"help": text, "choices": choices, "least": least, "most": most})


@dataclass(frozen=True)
class TrainArguments:
    """Names as in diffusers' own training scripts, and those of routing and ratios after them.

    `of` fills in what a recipe sets; here `recipe` is a name for the record.

    Raises:
        ArgumentError: a value out of range, or two that exclude each other; the text names the argument.
    """

    pretrained_model_name_or_path: str = _arg(
        "digits",
        "digits, shapes, a folder or a hub id: a diffusers model, or a repository with a transformer.",
    )
    revision: str | None = _arg(None, "Revision of the hub repository.")
    variant: str | None = _arg(None, "Variant of the weights, such as fp16.")
    dataset_name: str | None = _arg(
        None,
        "digits, shapes, a folder of images, or a name that `datasets` knows. Default: that of the model's "
        "name. Captions of a folder: metadata.jsonl or metadata.csv (file_name, text), a .txt beside each "
        "image, or a folder for each class. Every tenth image is held out, where there are no folders train "
        "and validation.",
    )
    image_column: str | None = _arg(None, "The column of `datasets` with the images. Default: image.")
    caption_column: str | None = _arg(
        None, "The column with the captions, of metadata or `datasets`. Default: text or caption."
    )
    keep_rows: str | None = _arg(
        None,
        "Rows of `datasets` to keep, by their columns, as in the paper: 'aesthetic >= 5.5, language = en, "
        "similarity >= 0.24'.",
    )
    max_sequence_length: int | None = _arg(
        None, "Text tokens. Default: what the pipeline takes, of PixArt 120; 300 is for -Sigma.", least=1
    )
    output_dir: str = _arg("diffratio-model", "The run: logs, checkpoints and the result.")
    recipe: str | None = _arg(
        None, "The paper's settings for a task, in place of the defaults; what is given wins.", tuple(RECIPES)
    )
    task: str = _arg("t2i", "Images of text, or repainting a part of an image.", TASKS)
    system: str = _arg(
        "lazy",
        "What repaints: lazy makes the hole's tokens in the context of all, image makes all tokens, crop "
        "those of a square around the hole. Begins with the weights of a PixArt.",
        SYSTEMS,
    )
    masks: str = _arg(
        "mixed",
        "What is repainted: the object (of data with masks of it), the object and a margin (dilated), a box, "
        "strokes of a brush, or each of these.",
        MASKS,
    )
    seed: int = _arg(0, "Decides every random number of the run.", least=0)
    resolution: int | None = _arg(
        None, "Side of the images in pixels. Default: that which the model was made for.", least=1
    )
    train_batch_size: int = _arg(16, "Samples per process and forward pass.", least=1)
    gradient_accumulation_steps: int = _arg(1, "Forward passes per optimiser step.", least=1)
    gradient_checkpointing: bool = _arg(False, "Recompute the blocks in the backward pass.")
    dataloader_num_workers: int = _arg(0, "Processes that prepare batches.", least=0)
    proportion_empty_prompts: float = _arg(
        0.1,
        "Part of the captions that are dropped. DiT always drops a tenth of its classes, a model that is "
        "told its guidance (FLUX.1-dev) nothing.",
        least=0,
        most=1,
    )
    max_train_steps: int = _arg(1000, "Optimiser steps.", least=1)
    train_mode: str = _arg("lora", "What is trained beside routers and ratios.", ("lora", "full"))
    rank: int = _arg(32, "Rank of LoRA.", least=1)
    learning_rate: float = _arg(1e-4, "Of the model's weights or its LoRA.", least=0)
    lr_scheduler: str = _arg("constant", "Shape of all learning rates.", SCHEDULES)
    lr_warmup_steps: int = _arg(0, "Steps over which the learning rates rise.", least=0)
    mixed_precision: str = _arg("no", "bf16 computes in bf16, with fp32 training weights.", ("no", "bf16"))
    adam_beta1: float = _arg(0.9, "First momentum.", least=0)
    adam_beta2: float = _arg(0.999, "Second momentum.", least=0)
    adam_weight_decay: float = _arg(1e-2, "Of the model's weights; routers and ratios have none.", least=0)
    adam_epsilon: float = _arg(1e-8, "Epsilon of AdamW.", least=0)
    max_grad_norm: float = _arg(1.0, "Limit of the gradient's norm, ratios apart.", least=0)
    use_ema: bool = _arg(False, "Keep a moving average of the weights, which is the result.")
    ema_max_decay: float = _arg(0.9999, "Decay of the moving average.", least=0, most=1)
    snr_gamma: float | None = _arg(None, "min-SNR weighting of the loss; 5.0 is usual.", least=0)
    learn_variance: bool = _arg(
        False, "Train the variance that PixArt and DiT predict, too (IDDPM): for the sampler ddpm."
    )
    weighting_scheme: str = _arg("logit_normal", "How flow models draw noise levels.", FLOW_SCHEMES)
    logit_mean: float = _arg(0.0, "Of logit_normal, before the scheduler's shift.")
    logit_std: float = _arg(1.0, "Of logit_normal.", least=0)
    guidance_scale: float = _arg(3.5, "What a model that is told its guidance is told.", least=0)
    checkpointing_steps: int = _arg(500, "Steps between checkpoints.", least=1)
    checkpoints_total_limit: int | None = _arg(None, "Older checkpoints are deleted.", least=1)
    resume_from_checkpoint: str | None = _arg(None, "latest, or the name of a checkpoint of this run.")
    validation_steps: int = _arg(100, "Steps between validations on held-out images.", least=1)
    report_to: str = _arg("tensorboard", "Where curves and images go.", ("tensorboard", "none"))
    logging_dir: str = _arg("logs", "Folder of the curves, inside of output_dir.")
    method: str = _arg(
        "lt", "dense (control), mod (uniform), l (a ratio per layer) or lt (and timestep region).", METHODS
    )
    target_compression: float = _arg(
        0.3, "Part of the tokens that the layers skip on average.", least=0, most=1
    )
    num_regions: int = _arg(4, "Timestep regions of lt, and of the validation loss.", least=1, most=1000)
    ratio_lr: float | None = _arg(None, "Learning rate of the ratios. Default: by steps and target.", least=0)
    ratio_loss_weight: str = _arg(
        "auto",
        "auto: no loss, each step projects the ratios so that their mean is the target. Or the weight of the "
        "paper's loss (0.3), which pulls the mean towards the target and may stop short of it.",
    )
    smallest_bin: float = _arg(
        DEFAULT_BINS[-1] / 10,
        "Smallest part of the tokens that l and lt may keep in a layer, a tenth; 0.0 skips the layer.",
        least=0,
        most=0.9,
    )
    ratio_mode: str = _arg("default", "faithful: the authors' clamp and bins.", ("default", "faithful"))
    router_start: str = _arg("identity", "faithful: the authors' sigmoid.", STARTS)
    rounding: str = _arg("ceil", "Of kept tokens; floor: as the authors' uniform MoD.", ROUNDINGS)
    rescale: str = _arg("mlp", "What the router's score multiplies.", RESCALE)
    router_lr: float | None = _arg(None, "Learning rate of the routers. Default: learning_rate.", least=0)

    def __post_init__(self):
        for one in fields(self):
            self._check(one)
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                self._refuse(name, "must be less than 1")
        if self.lr_warmup_steps > self.max_train_steps:
            self._refuse("lr_warmup_steps", f"must not exceed max_train_steps={self.max_train_steps}")
        if self.lr_warmup_steps > 0 and self.lr_scheduler == "constant":
            self._refuse("lr_warmup_steps", "is not for constant: lr_scheduler=constant_with_warmup")
        if self.task == "inpaint" and self.train_mode != "full":
            self._refuse("train_mode", "must be full for task=inpaint, which has parts that are new")
        target = self.target_compression
        if self.method == "mod" and (target == 1 or abs(10 * target - round(10 * target)) >= 1e-6):
            self._refuse("target_compression", "must be a tenth below 1 for method mod")
        if abs(10 * self.smallest_bin - round(10 * self.smallest_bin)) >= 1e-6:
            self._refuse("smallest_bin", "must be a tenth")
        if self.ratio_mode == "faithful" and self.bins != DEFAULT_BINS:
            self._refuse("smallest_bin", "must be 0.3 with ratio_mode=faithful: the authors' bins")
        if self.learns_ratios and target > 1 - self.smallest_bin + 1e-9:
            self._refuse(
                "target_compression",
                f"must not exceed {round(1 - self.smallest_bin, 1)}, since smallest_bin={self.smallest_bin}",
            )
        self.fixed_ratio_weight()

    @classmethod
    def of(cls, **given) -> TrainArguments:
        """Return the arguments of a recipe, where `given` names one and does not say otherwise."""
        recipe = given.get("recipe")
        settings = RECIPES[recipe].arguments if recipe in RECIPES else {}
        return cls(**(settings | given))

    def _check(self, one: Field) -> None:
        """Check type, choices and range of one argument."""
        name, value = one.name, getattr(self, one.name)
        if value is None and one.type.endswith("None"):
            return
        wanted = {"str": str, "int": int, "float": (int, float), "bool": bool}[one.type.split(" | ")[0]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            self._refuse(name, f"must be of type {one.type}")
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(name, "must be finite")
        choices, least, most = (one.metadata[limit] for limit in ("choices", "least", "most"))
        if choices is not None and value not in choices:
            self._refuse(name, f"must be one of {', '.join(choices)}")
        if least is not None and value < least:
            self._refuse(name, f"must be at least {least}")
        if most is not None and value > most:
            self._refuse(name, f"must be at most {most}")

    def _refuse(self, name: str, rule: str) -> NoReturn:
        raise ArgumentError(f"{name}={getattr(self, name)!r} {rule}")

    def fixed_ratio_weight(self) -> float | None:
        """Return the number in ratio_loss_weight, None for "auto"."""
        if self.ratio_loss_weight == "auto":
            return None
        try:
            weight = float(self.ratio_loss_weight)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            self._refuse("ratio_loss_weight", "must be auto or a number from 0 on")
        return weight

    @property
    def bins(self) -> tuple[int, ...]:
        """Kept tenths that ratios lie between."""
        return tuple(range(10, round(10 * self.smallest_bin) - 1, -1))

    @property
    def regions(self) -> int:
        """R of the model: timestep regions that may keep differently."""
        return self.num_regions if self.method == "lt" else 1

    @property
    def learns_ratios(self) -> bool:
        """Whether the method learns how much to keep."""
        return self.method in ("l", "lt")
