"""All figures of a run directory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.inpainting import judge_of
from ..evaluation.quality import Judge, SampleSettings
from ..evaluation.target import load_target
from ..train.checkpoints import Checkpoints
from ..train.run_log import RATIOS, RUN, read_lines
from .pictures import router_maps
from .quality import quality_curves
from .ratios import region_map, trajectories
from .recorded import Recorded, record_samples
from .scores import score_maps, scores_of_ratios
from .style import save

RATIOS_ONLY = ("trajectories", "regions")
"""Figures that need no model."""
ROUTED = ("maps", "scores", "scores-of-ratios")
"""Figures of what routers do while samples are made."""
FIGURES = (*RATIOS_ONLY, *ROUTED, "quality", "side-by-side")
QUALITY_FILE = "quality.json"
_RECORDED = 16  # samples whose scores are averaged
_MAP_SAMPLES = 3
_MAP_COLUMNS = 5
_LEARNED = ("l", "lt")


class Run:
    """What a run directory tells: ``info`` (run.json), ``steps`` [S], ``ratios`` [S, L, R] (ratios.jsonl).

    Raises:
        ValueError: ``path`` holds no run.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self.info = json.loads((self.path / RUN).read_text())
            arguments = self.info["arguments"]
            self.flow = self.info.get("flow", False)
            self.method, self.target = arguments["method"], 1 - arguments["target_compression"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"path: {str(path)!r} holds no run ({error})") from None
        lines = read_lines(self.path / RATIOS)
        self.steps = np.array([line["step"] for line in lines])
        self.ratios = np.array([line["ratios"] for line in lines])

    @property
    def title(self) -> str:
        """Name, method and target of the run."""
        return f"{self.path.name}: {self.method}, target {100 * self.target:.0f} % kept"

    def figures(self) -> tuple[str, ...]:
        """What can be drawn: a run without learned ratios has no trajectories, and no scores to compare with
        them; a dense one and one of a flow model nothing of routers."""
        learned = self.method in _LEARNED and len(self.steps)
        left_out = () if learned else (*RATIOS_ONLY, "scores-of-ratios")
        left_out += ROUTED if self.flow or self.method == "dense" else ()
        return tuple(name for name in FIGURES if name not in left_out)

    def models(self) -> list[tuple[int, int | None]]:
        """(step, checkpoint) of every whole model in the order of training; None is the finished one."""
        checkpoints = Checkpoints(self.path)
        found = [(step, step) for step in checkpoints.steps() if checkpoints.why_broken(step) is None]
        if (self.path / "final").is_dir():
            # A finished run that is made longer has another last step than its finished model.
            last = self.info.get("step", self.info["arguments"]["max_train_steps"])
            found = sorted([one for one in found if one[0] != last] + [(last, None)], key=lambda one: one[0])
        if not found:
            raise ValueError(f"path: the run in {str(self.path)!r} has no model yet")
        return found


def why_no_samples(run: Run) -> str | None:
    """Why the model makes no images of its data set, as where it works on latents; None where it does."""
    target = load_target(run.path, checkpoint=run.models()[-1][1])
    if target.in_latents:
        return "a pipeline with a VAE is judged by diffratio eval alone"
    return judge_of(target, SampleSettings()).why_not(target, quality=True)


def draw_run(
    run: Run, out: Path, figures: Sequence[str], *, device: str = "cpu", progress: bool = True
) -> list[Path]:
    """Write the pictures of one run, as far as asked for and possible, each named after its figure."""
    drawn, written = [name for name in figures if name in run.figures()], []
    if "trajectories" in drawn:
        title = f"Kept tokens by layer\n{run.title}"
        figure = trajectories(run.steps, run.ratios, run.target, title)
        written.append(save(figure, out / "trajectories.png"))
    if "regions" in drawn:
        title = f"Learned ratios after step {run.steps[-1]}\n{run.title}"
        written.append(save(region_map(run.ratios[-1], title, run.flow), out / "regions.png"))
    if routed := [name for name in ROUTED if name in drawn]:
        target = load_target(run.path, checkpoint=run.models()[-1][1], device=device)
        judge = judge_of(target, SampleSettings(_RECORDED), progress)
        if (reason := judge.why_not(target, quality=True)) is not None:
            raise ValueError(f"{routed[0]}: {reason}")
        recorded = record_samples(judge, target, "sampling with routing recorded")
        figures = _routed(run, recorded, np.array(target.kept_tenths) / 10)
        written += [save(figures[name](), out / f"{name}.png") for name in routed]
    return written


def _routed(run: Run, recorded: Recorded, ratios: np.ndarray) -> dict[str, Callable[[], Figure]]:
    """How each figure of `ROUTED` is drawn; ``ratios`` are the kept ones [L, R]."""
    shown = np.linspace(0, len(recorded.timesteps) - 1, _MAP_COLUMNS).round().astype(int).tolist()
    timesteps, few = [recorded.timesteps[i] for i in shown], slice(_MAP_SAMPLES)
    kept, scores, noisy = (x[few][:, shown] for x in (recorded.kept, recorded.scores, recorded.noisy))
    hole = None if recorded.hole is None else recorded.hole[few]
    means = recorded.mean_scores(ratios.shape[1]).numpy()
    colours = "pale red: skipped" if hole is None else "pale red: skipped, pale grey: not made"
    titles = (
        f"Tokens that each layer keeps ({colours})\n{run.title}",
        f"Scores of the routers, and what the model is given\n{run.title}",
        f"Scores of the routers and learned ratios\n{run.title}",
    )
    return {
        "maps": lambda: router_maps(recorded.images[few], kept, timesteps, titles[0], hole),
        "scores": lambda: score_maps(noisy, scores, timesteps, titles[1]),
        "scores-of-ratios": lambda: scores_of_ratios(ratios, means, titles[2]),
    }


def measure_runs(
    runs: Sequence[Run], settings: SampleSettings, *, device: str = "cpu", progress: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of ``Judge`` for every model of every run, by the run's name, with ``step`` and
    ``mean_kept``. Of a run that learns no ratios the last model counts alone."""
    judges: dict[tuple, Judge] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        models = run.models() if run.method in _LEARNED else run.models()[-1:]
        entries = found.setdefault(run.path.name, [])
        for step, checkpoint in models:
            target = load_target(run.path, checkpoint=checkpoint, device=device)
            data = (target.dataset, *target.options.values())
            if target.repaints:
                data += tuple(target.run["arguments"][name] for name in ("system", "masks"))
            if data not in judges:
                judges[data] = judge_of(target, settings, progress)
            if (reason := judges[data].why_not(target, quality=True)) is not None:
                raise ValueError(f"quality: {reason}")
            _, quality = judges[data](target, f"sampling {target.name}")
            entries.append({"step": step, "mean_kept": target.mean_kept, **quality})
    return found


def draw_quality(
    runs: Sequence[Run], out: Path, settings: SampleSettings, *, device: str = "cpu", progress: bool = True
) -> list[Path]:
    """Write ``quality.png`` over all ``runs``, and its figures as ``quality.json``."""
    measured = measure_runs(runs, settings, device=device, progress=progress)
    title = "Quality of the by-product models along training"
    figure = quality_curves(measured, title if len(runs) > 1 else f"{title}\n{runs[0].title}")
    written = [save(figure, out / "quality.png"), out / QUALITY_FILE]
    content = {"settings": vars(settings), "runs": measured}
    written[1].write_text(json.dumps(content, indent=2) + "\n")
    return written
