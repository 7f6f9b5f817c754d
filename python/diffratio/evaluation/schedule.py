"""The noise that a model was trained with, and what it predicts of it: from the scheduler saved beside it."""

from collections.abc import Iterable
from pathlib import Path

from diffusers import DDPMScheduler

from ..models import DIFFUSION_SCHEDULERS, PREDICTED, sampling_scheduler

TIMESTEPS = 1000
FILE = Path("scheduler", "scheduler_config.json")


def read_schedule(folders: Iterable[Path]) -> DDPMScheduler | None:
    """Return the schedule of the first of ``folders`` with a ``scheduler/scheduler_config.json``, else None.

    Raises:
        ValueError: evaluation cannot use it; the text names what of it.
    """
    folder = next((one for one in folders if (one / FILE).is_file()), None)
    if folder is None:
        return None
    config = DDPMScheduler.load_config(folder, subfolder=FILE.parent.name)
    schedule = DDPMScheduler.from_config(config)
    for name, value, usable in (
        ("_class_name", config.get("_class_name"), DIFFUSION_SCHEDULERS),
        ("prediction_type", schedule.config.prediction_type, PREDICTED),
        ("num_train_timesteps", schedule.config.num_train_timesteps, (TIMESTEPS,)),
    ):
        if value not in usable:
            wanted = ", ".join(map(str, usable))
            raise ValueError(f"{folder / FILE}: {name}={value!r} cannot be evaluated, only {wanted}")
    try:
        sampling_scheduler(schedule)
    except NotImplementedError as error:
        raise ValueError(f"{folder / FILE}: DPM-Solver++ cannot sample with it ({error})") from None
    return schedule
