"""The small-scale reproduction: python -m benchmarks.reproduction.run [--jobs 2] [--only TEXT].

Fine-tunes the shipped dense models by every method and judges the results. What is done with today's models
and settings is left alone, so a stopped reproduction goes on where it was. One thread per run; the logs lie
in out/reproduction/, and one file of results per run in benchmarks/results/reproduction/. `tables.py` writes
docs/reproduction.md from them.
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

from benchmarks.reproduction.plan import (
    DATASETS,
    RESULTS,
    ROOT,
    SAMPLING,
    TRAINING,
    Run,
    all_runs,
    is_done,
    setup,
)
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.router_maps import router_auc
from diffratio.evaluation.target import Target, load_target
from diffratio.progress import progress_bar
from diffratio.train import TrainArguments, train
from diffratio_kernels import kept_tokens


def finish(run: Run, facts: dict) -> str:
    """Train and judge one run, in a process of its own."""
    torch.set_num_threads(1)
    if not (run.folder / "final").is_dir():
        resume = "latest" if run.folder.is_dir() else None
        train(
            TrainArguments(
                pretrained_model_name_or_path=run.dataset,
                output_dir=str(run.folder),
                method=run.method,
                target_compression=run.target,
                seed=run.seed,
                resume_from_checkpoint=resume,
                **TRAINING,
            ),
            progress=False,
        )
    facts = {"name": run.name, **vars(run), "setup": setup(run.dataset), **facts}
    write(run.result, facts | judged(load_target(run.folder)) | logged(run))
    return run.name


def judged(target: Target) -> dict:
    """Quality, kept tokens and FLOPs of a finished model."""
    judge = Judge(target.dataset, SampleSettings(**SAMPLING), progress=False)
    _, quality = judge(target)
    shape = TransformerShape.from_model(target.model, text_tokens=judge.held_out.text_tokens)
    dense = transformer_flops(shape).total
    table = target.kept_tenths
    kept = None if table is None else [[kept_tokens(n, shape.tokens) for n in row] for row in table]
    auc = router_auc(target.model, judge.held_out) if target.routed else None
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
        if is_done(path, name):
            continue
        judge = Judge(name, SampleSettings(**SAMPLING))
        about = {"name": f"{name}-start", "setup": setup(name), **facts, "real": judge.real}
        write(path, about | judged(load_target(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    facts = {
        "commit": commit.stdout.strip(), "date": str(date.today()), "torch": torch.__version__,
        "python": platform.python_version(), "training": TRAINING, "sampling": SAMPLING,
    }  # fmt: skip
    runs = [run for run in all_runs() if arguments.only in run.name]
    prepare(facts, {run.dataset for run in runs} & set(DATASETS))
    todo = [run for run in runs if not is_done(run.result, run.dataset)]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(arguments.jobs, context, max_tasks_per_child=1) as pool,
        progress_bar(total=len(runs), initial=len(runs) - len(todo), unit="run") as bar,
    ):
        for done in as_completed([pool.submit(finish, run, facts) for run in todo]):
            tqdm.write(done.result(), file=sys.stderr)
            bar.update()


if __name__ == "__main__":
    main()
