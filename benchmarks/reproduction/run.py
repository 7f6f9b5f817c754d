"""The small-scale reproduction, all of it or a part:

    python -m benchmarks.reproduction.run
    python -m benchmarks.reproduction.run --dataset shapes --method lt --target 0.2 --seed 3
    python -m benchmarks.reproduction.run --dataset twins --system lazy --method lt --seed 3

Fine-tunes the shipped dense models by every method, runs what needs no training on them, and judges the
results. Systems that repaint twins are trained dense before that, once each ("start"). What is done with
today's models and settings is left alone, so a stopped reproduction goes on where it was. One thread per run;
the logs lie in out/reproduction/, and one file of results per run in benchmarks/results/reproduction/.
`tables.py` writes docs/reproduction.md from those of the plan's seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date

import torch
from tqdm import tqdm

from benchmarks.reproduction import twins
from benchmarks.reproduction.plan import (
    DATASETS,
    RESULTS,
    ROOT,
    SAMPLING,
    SEEDS,
    SYSTEMS,
    TARGETS,
    TRAINING,
    TRAINING_FREE,
    Run,
    all_runs,
    is_done,
    setup,
)
from benchmarks.reproduction.repainting import judged_repainting
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.router_maps import router_auc
from diffratio.evaluation.target import Target, load_target
from diffratio.progress import progress_bar
from diffratio.routing.find import routed_model
from diffratio.train import TrainArguments, train
from diffratio_kernels import kept_tokens


def finish(run: Run, facts: dict) -> str:
    """Do and judge one run, in a process of its own. Returns a line about it."""
    torch.set_num_threads(1)
    facts = {"name": run.name, **vars(run), "setup": run.setup, **facts}
    if run.method in TRAINING_FREE:
        found = facts | judged_by_eval(run)
    else:
        train_once(run)
        judge = judged_repainting if isinstance(run, twins.Repaint) else judged
        found = facts | {"training": run.training} | judge(load_target(run.folder)) | logged(run)
    write(run.result, found)
    quality, flops = found["quality"], found["flops_of_dense"]
    right = f"all right {quality['accuracy_joint']:.3f}"
    return f"{run.name}: v-MSE {quality['v_mse']:.4f}, {right}, FLOPs {flops:.3f} of dense"


def train_once(run: Run) -> None:
    """Train, or go on where a run was stopped; nothing where it is finished."""
    torch.set_num_threads(1)
    if not (run.folder / "final").is_dir():
        resume = "latest" if run.folder.is_dir() else None
        own = {"output_dir": str(run.folder), "resume_from_checkpoint": resume}
        own["pretrained_model_name_or_path"] = run.base
        train(TrainArguments(**run.training | own), progress=False)


def judged_by_eval(run: Run) -> dict:
    """Quality and FLOPs of what needs no training, by the command that anybody would type."""
    baseline = f"{TRAINING_FREE[run.method].method}:{run.compression}"
    settings = [word for name, value in SAMPLING.items() for word in (f"--{name}", str(value))]
    command = ["eval", run.dataset, "--baseline", baseline, *settings, "--device", "cpu", "--json"]
    done = subprocess.run([sys.executable, "-m", "diffratio", *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"diffratio {' '.join(command)}: {done.stderr}")
    report = json.loads(done.stdout)
    dense, own = report["cost"].values()
    return {
        "command": command,
        "quality": report["quality"],
        "mean_kept_in_bins": None,
        "flops_of_dense": own["gflop"] / dense["gflop"],
    }


def judged(target: Target) -> dict:
    """Quality, kept tokens and FLOPs of a finished model."""
    judge = Judge(target.dataset, SampleSettings(**SAMPLING), progress=False)
    _, quality = judge(target)
    shape = TransformerShape.from_model(target.model, text_tokens=judge.held_out.text_tokens)
    dense = transformer_flops(shape).total
    table = target.kept_tenths
    kept = auc = None
    if target.routed:
        rounding = routed_model(target.model).config.rounding
        kept = [[kept_tokens(n, shape.tokens, rounding) for n in row] for row in table]
        auc = router_auc(target.model, judge.held_out)
    return {
        "quality": quality,
        "kept_tenths": table,
        "mean_kept_in_bins": target.mean_kept,
        "flops_of_dense": transformer_flops(shape, kept).total / dense,
        "router_auc": auc,
    }


def logged(run: Run) -> dict:
    """The curves of a run, thinned: losses averaged over 20 steps, ratios of every 20th step."""
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    means = [
        {"step": part[-1]["step"], "loss": sum(entry["loss"] for entry in part) / len(part)}
        for part in (steps[i : i + 20] for i in range(0, len(steps), 20))
    ]
    path = run.folder / "ratios.jsonl"
    ratios = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {
        "losses": means,
        "validation": [entry for entry in log if "validation_loss" in entry],
        "ratios": [entry for entry in ratios if entry["step"] % 20 == 0],
        "seconds_per_step": sorted(entry["seconds"] for entry in steps)[len(steps) // 2],
    }


def write(path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)


def prepare(facts: dict, datasets: set[str]) -> None:
    """The models before any fine-tuning, and what real held-out images get: the two ends of the tables."""
    for name in sorted(datasets):
        path = RESULTS / f"{name}-start.json"
        if is_done(path, setup(name)):
            continue
        judge = Judge(name, SampleSettings(**SAMPLING))
        about = {"name": f"{name}-start", "setup": setup(name), **facts, "real": judge.real}
        write(path, about | judged(load_target(name)))


def chosen(arguments: argparse.Namespace) -> list[Run]:
    """The runs that the command line asks for; without an argument all of the plan."""
    wanted = {name: value for name, value in vars(arguments).items() if name != "jobs" and value}
    seeds = arguments.seed or SEEDS
    runs = [*all_runs(seeds), *twins.all_repaints(seeds)]
    return [run for run in runs if all(getattr(run, name, None) in value for name, value in wanted.items())]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--jobs", type=int, default=os.cpu_count())
    found.add_argument(
        "--dataset", choices=[*DATASETS, twins.DATASET], action="append", help="repeatable, as all"
    )
    found.add_argument("--system", choices=twins.SYSTEMS, action="append", help="of twins")
    found.add_argument("--method", choices=[twins.START, *SYSTEMS, *TRAINING_FREE], action="append")
    found.add_argument("--target", type=float, choices=TARGETS, action="append")
    found.add_argument("--seed", type=int, action="append", help="any; the tables read 0, 1 and 2")
    return found


def main() -> None:
    arguments = parser().parse_args()
    runs = chosen(arguments)
    if not runs:
        raise SystemExit("no such run: dense has no target, what is not trained has seed 0 alone")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    facts = {
        "commit": commit.stdout.strip(), "date": str(date.today()), "torch": torch.__version__,
        "python": platform.python_version(), "training": TRAINING, "sampling": SAMPLING,
    }  # fmt: skip
    prepare(facts, {run.dataset for run in runs} & set(DATASETS))
    todo = [run for run in runs if not run.done]
    starts = dict.fromkeys(run.start for run in todo if isinstance(run, twins.Repaint))
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(arguments.jobs, context, max_tasks_per_child=1) as pool,
        progress_bar(total=len(runs), initial=len(runs) - len(todo), unit="run") as bar,
    ):
        for done in as_completed([pool.submit(train_once, start) for start in starts]):
            done.result()
        for done in as_completed([pool.submit(finish, run, facts) for run in todo]):
            tqdm.write(done.result(), file=sys.stderr)
            bar.update()


if __name__ == "__main__":
    main()
