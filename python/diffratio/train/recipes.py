"""The paper's settings (section 4.1 and supplement B), by task."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """What a recipe sets.

    Attributes:
        arguments: of the training, by name.
        sampling: what `sample` and `eval` take for a run of it, unless told otherwise.
    """

    arguments: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)


_BOTH = {"learn_variance": True, "ratio_loss_weight": "0.3"}
RECIPES = {
    "t2i": Recipe(
        _BOTH | {"train_mode": "lora", "rank": 32, "num_regions": 4},
        {"sampler": "dpm++", "steps": 20, "guidance": 4.5},
    ),
    "inpaint": Recipe(
        _BOTH
        | {
            "task": "inpaint",
            "train_mode": "full",
            "learning_rate": 1e-4,
            "adam_weight_decay": 3e-2,
            "num_regions": 10,
        },
        {"sampler": "ddpm", "steps": 100, "guidance": 4.5},
    ),
}


def sampling_of(recipe: str | None) -> dict:
    """How a recipe's models are sampled; nothing where there is no recipe."""
    return {} if recipe is None else RECIPES[recipe].sampling
