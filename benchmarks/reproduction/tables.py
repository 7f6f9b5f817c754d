"""The tables of docs/reproduction.md, which tables.py writes between its markers, and its picture. Those of
repainting are in twins_tables.py."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

from benchmarks.reproduction import latency, twins_tables
from benchmarks.reproduction.figure import draw, draw_costs
from benchmarks.reproduction.plan import (
    DATASETS,
    LEARNED,
    RESULTS,
    ROOT,
    SYSTEMS,
    TARGETS,
    TRAINING_FREE,
    all_runs,
    is_done,
    setup,
)
from benchmarks.reproduction.twins_tables import spread

DOCUMENT = ROOT / "docs" / "reproduction.md"
PICTURE = DOCUMENT.with_suffix(".png")
COSTS = DOCUMENT.with_name("reproduction-costs.png")
START, REPAINTING, END = (
    *("<!-- measured: tables.py writes from here -->", "<!-- repainting: tables.py writes from here -->"),
    "<!-- to here -->",
)
NAMES = {method: system.label for method, system in (SYSTEMS | TRAINING_FREE).items()}
HEAD = (
    "| model | seeds | mean kept (ratios) | mean kept (bins) | FLOPs of dense | v-MSE | Frechet | attributes "
    "| all right |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
TIMES = (
    ("time of dense", "shapes", "time_of_dense"),
    ("FLOPs, wide", "wide", "flops_of_dense"),
    ("time, wide", "wide", "time_of_dense"),
)
"""Columns of `latency.load`: name, size and figure."""
PAIRS = (
    ("l", "mod"),
    ("lt", "mod"),
    ("lt-matched", "mod"),
    ("lt", "l"),
    ("mod-ramp", "mod"),
    ("lt-matched", "mod-ramp"),
    ("lt", "mod-clean"),
    ("lt", "tome-all"),
)
"""What is compared, the first with the second."""
CONTROLS = ("mod-ramp", "mod-clean")
GAINS = (("v-MSE", "v_mse", -1), ("all right", "accuracy_joint", 1))
"""Name, figure, and 1 where larger is better."""
EQUAL = 0.005
"""FLOPs that differ by no more than this part count as equal."""


def load() -> list[dict]:
    """Every result of the plan that stands for today's models and settings, seeds in order."""
    return [json.loads(run.result.read_text()) for run in all_runs() if run.done]


def load_starts() -> dict[str, dict]:
    """What the models before fine-tuning, and real images, come to."""
    paths = {name: RESULTS / f"{name}-start.json" for name in DATASETS}
    missing = [path.name for name, path in paths.items() if not is_done(path, setup(name))]
    if missing:
        raise SystemExit(f"the reproduction has not begun: {', '.join(missing)}")
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def mean_ratio(result: dict) -> float | None:
    """The mean of the learned ratios; of the bins where nothing is learned; None where tokens are merged."""
    if not result.get("ratios"):
        return result["mean_kept_in_bins"]
    return statistics.mean(ratio for row in result["ratios"][-1]["ratios"] for ratio in row)


def row(name: str, results: list[dict], more: Sequence[str] = ()) -> str:
    """more: cells at its end."""
    quality = [result["quality"] for result in results]
    kept = [mean_ratio(result) for result in results]
    cells = [
        str(len(results)),
        "" if None in kept else spread(kept, 3),
        "" if None in kept else spread([result["mean_kept_in_bins"] for result in results], 3),
        spread([result["flops_of_dense"] for result in results], 3),
        spread([one["v_mse"] for one in quality], 4),
        spread([one["frechet"] for one in quality], 2),
        spread([one["accuracy_mean"] for one in quality], 3),
        spread([one["accuracy_joint"] for one in quality], 3),
        *more,
    ]
    return f"| {name} | {' | '.join(cells)} |"


def quality_table(dataset: str, start: dict, runs: dict, times: dict | None = None) -> list[str]:
    """A row for each system of which there is a result, target by target; times: of `latency.load`, where
    they are of this data set."""
    real, columns = start["real"], () if times is None else TIMES
    names, rule = HEAD.splitlines()
    names += "".join(f" {name} |" for name, _, _ in columns)
    lines = [f"### {dataset}", "", f"{names}\n{rule}{'---|' * len(columns)}"]
    lines.append(
        f"| real held-out images | | | | | | {real['frechet']:.2f} | {real['accuracy_mean']:.3f} | "
        f"{real['accuracy_joint']:.3f} |" + " |" * len(columns)
    )
    lines.append(row("dense, before", [start], ["1.000"] * len(columns)))
    for (_, method, target), results in ((key, runs[key]) for key in keys(dataset) if key in runs):
        name = f"{NAMES[method]}, {target:.0%}" if target else NAMES[method]
        lines.append(row(name, results, cost_cells(times, method, target) if columns else ()))
    return [*lines, "", *times_lines(times)]


def cost_cells(times: dict, method: str, target: float) -> list[str]:
    """What a step of a system costs, where that was measured."""
    if method == "dense":
        return ["1.000"] * len(TIMES)
    sizes = times["sizes"] if target == times["target"] else {}
    own = [sizes.get(size, {"systems": {}})["systems"].get(method) for _, size, _ in TIMES]
    return ["" if one is None else f"{one[cost]:.3f}" for one, (_, _, cost) in zip(own, TIMES, strict=True)]


def times_lines(times: dict | None) -> list[str]:
    """How they were measured."""
    if times is None:
        return []
    small, wide = sizes = list(times["sizes"].values())
    own = [f"{size['systems']['all tokens']['time_of_dense']:.3f}" for size in sizes]
    spread = max(figures["spread"] for size in sizes for figures in size["systems"].values())
    return [
        f"Times are of a step, the mean over those of the sampler, with the ratios of seed {times['seed']}: "
        f"of {small['batch']} samples on this model, and (wide) {wide['batch']} of {wide['tokens']} tokens "
        f"on one of random weights, width {wide['width']}, whose layers keep the same parts. All systems "
        f"take turns with the dense model; medians of {small['rounds']} and {wide['rounds']} rounds, their "
        f"spread at most {spread:.0%}; {times['threads']} thread of {times['device']}, torch "
        f"{times['versions']['torch']}, commit {times['commit']}. Routed blocks that skip nothing take "
        f"{' and '.join(own)} of the dense time: fused kernels, and routing.",
        "",
    ]


def cost_points(runs: dict, times: dict) -> list[dict]:
    """Every system at the target of the times, dense first: its name, mean quality, and costs over the dense
    model's, as `tradeoffs` draws them."""
    dataset, target, sizes = times["dataset"], times["target"], times["sizes"]
    costs = {"dense": {"time_of_dense": 1.0, "flops_of_dense": 1.0}} | sizes[dataset]["systems"]
    points = []
    for method in (*SYSTEMS, *TRAINING_FREE):
        results = runs.get((dataset, method, 0.0 if method == "dense" else target), [])
        if not results or method not in costs:
            continue
        names = ("frechet", "accuracy_joint", "v_mse")
        quality = {name: statistics.mean(one["quality"][name] for one in results) for name in names}
        time, flops = (costs[method][f"{cost}_of_dense"] for cost in ("time", "flops"))
        points.append({"name": NAMES[method], "quality": quality, "milliseconds": time, "gflop": flops})
    return points


def keys(dataset: str) -> list[tuple[str, str, float]]:
    """(dataset, method, target) of every row, in the order of the table."""
    compressed = [method for method in (*SYSTEMS, *TRAINING_FREE) if method != "dense"]
    rows = [(dataset, method, target) for target in TARGETS for method in compressed]
    return [(dataset, "dense", 0.0), *rows]


def learned_table(runs: dict) -> list[str]:
    """What the ratios look like: how far layers differ, and what each timestep region keeps."""
    lines = [
        "| run | kept per layer, mean over seeds | deviation over layers | kept per region, clean to noisy |",
        "|---|---|---|---|",
    ]
    for dataset, method, target in (key for name in DATASETS for key in keys(name) if key in runs):
        if method in TRAINING_FREE or SYSTEMS[method].method not in LEARNED:
            continue
        results = runs[dataset, method, target]
        tables = [result["ratios"][-1]["ratios"] for result in results]
        layers = [[statistics.mean(row) for row in table] for table in tables]
        regions = [[statistics.mean(column) for column in zip(*table, strict=True)] for table in tables]
        mean_layers = [statistics.mean(column) for column in zip(*layers, strict=True)]
        mean_regions = [statistics.mean(column) for column in zip(*regions, strict=True)]
        deviation = [statistics.pstdev(row) for row in layers]
        lines.append(
            f"| {row_name(dataset, method, target)} | {' '.join(f'{v:.2f}' for v in mean_layers)} | "
            f"{spread(deviation, 3)} | "
            f"{' '.join(f'{v:.2f}' for v in mean_regions) if len(mean_regions) > 1 else ''} |"
        )
    return [*lines, ""]


def quarters_table(runs: dict) -> list[str]:
    """v-MSE in each quarter of the timesteps, and how much of the excess over dense lies in the cleanest."""
    lines = [
        "| run | t 0 to 249 | 250 to 499 | 500 to 749 | 750 to 999 | of the excess over dense in 0 to 249 |",
        "|---|---|---|---|---|---|",
    ]
    for dataset in DATASETS:
        dense = by_quarter(runs[dataset, "dense", 0.0])
        for key in (key for key in keys(dataset) if key in runs):
            _, method, target = key
            found = by_quarter(runs[key])
            excess = [own - least for own, least in zip(found, dense, strict=True)]
            share = f"{excess[0] / sum(excess):.0%}" if sum(excess) > 0 else ""
            cells = " | ".join(f"{error:.4f}" for error in found)
            lines.append(f"| {row_name(dataset, method, target)} | {cells} | {share} |")
    return [*lines, ""]


def by_quarter(results: list[dict]) -> list[float]:
    """Means over seeds, from clean to noisy."""
    errors = [result["quality"]["v_mse_by_quartile"] for result in results]
    return [statistics.mean(column) for column in zip(*errors, strict=True)]


def row_name(dataset: str, method: str, target: float) -> str:
    return f"{dataset} {NAMES[method]}" + (f" {target:.0%}" if target else "")


def claims_table(runs: dict) -> list[str]:
    """The paper's claims, counted run by run."""
    learned = [result for key, results in runs.items() if key[1] in LEARNED for result in results]
    gaps = [abs(mean_ratio(result) - (1 - result["target"])) for result in learned]
    bins = [abs(result["mean_kept_in_bins"] - (1 - result["target"])) for result in learned]
    paper = [result for key, results in runs.items() if key[1] == "paper" for result in results]
    missed = [mean_ratio(result) - (1 - result["target"]) for result in paper]
    lt = [result for result in learned if result["method"] == "lt"]
    regions = [
        [statistics.mean(column) for column in zip(*result["ratios"][-1]["ratios"], strict=True)]
        for result in lt
    ]
    noisier = sum(region[0] == max(region) and region[0] > region[-1] for region in regions)
    monotone = sum(region == sorted(region, reverse=True) for region in regions)
    layers = [
        statistics.pstdev([statistics.mean(row) for row in result["ratios"][-1]["ratios"]])
        for result in learned
    ]
    lines = [
        "| claim | counted |",
        "|---|---|",
        f"| mean ratio within 1 point of the target, by construction | {sum(g <= 0.01 for g in gaps)} of "
        f"{len(gaps)} runs, largest gap {100 * max(gaps):.2f} points |",
        f"| mean of the bins at inference within 1 point | {sum(g <= 0.01 + 1e-9 for g in bins)} of "
        f"{len(bins)}, largest gap {100 * max(bins):.2f} points |",
    ]
    if missed:
        lines.append(
            f"| the same by the paper's own recipe | {sum(abs(g) <= 0.01 for g in missed)} of "
            f"{len(missed)} runs, gaps of {100 * min(missed):+.1f} to {100 * max(missed):+.1f} points |"
        )
    lines += [
        f"| layers differ (deviation above 0.01) | {sum(d > 0.01 for d in layers)} of {len(layers)} |",
        f"| the cleanest region keeps most, the noisiest less | {noisier} of {len(lt)} LT runs; "
        f"monotone over all four: {monotone} |",
    ]
    return [*lines, ""]


def pairs_table(runs: dict) -> list[str]:
    """One system against another, seed by seed, and how far their FLOPs are apart."""
    lines = ["| better by | FLOPs apart | v-MSE | Frechet | all attributes |", "|---|---|---|---|---|"]
    for one, other in PAIRS:
        pairs = list(paired(runs, one, other))
        if not pairs:
            continue
        apart = [a["flops_of_dense"] / b["flops_of_dense"] - 1 for a, b in pairs]
        counts = [
            sum(sign * a["quality"][metric] < sign * b["quality"][metric] for a, b in pairs)
            for metric, sign in (("v_mse", 1), ("frechet", 1), ("accuracy_joint", -1))
        ]
        equal = "equal" if max(map(abs, apart)) <= EQUAL else "not equal"
        cells = [f"{100 * min(apart):+.1f} to {100 * max(apart):+.1f} % ({equal})"]
        cells += [f"{count} of {len(pairs)}" for count in counts]
        lines.append(f"| {NAMES[one]} than {NAMES[other]} | {' | '.join(cells)} |")
    return [*lines, ""]


def gains_table(runs: dict) -> list[str]:
    """How much better LT is than uniform MoD, and which part of it controls have that learn no ratios."""
    lines = [
        f"| {NAMES['lt']} better than {NAMES['mod']} | seeds | by | {' | '.join(map(NAMES.get, CONTROLS))} |",
        f"|---|---|---|{'---|' * len(CONTROLS)}",
    ]
    for dataset, target, (name, metric, sign) in product(DATASETS, TARGETS, GAINS):
        found = {
            method: {
                one["seed"]: sign * one["quality"][metric] for one in runs.get((dataset, method, target), [])
            }
            for method in ("mod", "lt", *CONTROLS)
        }
        seeds = sorted(set.intersection(*map(set, found.values())))
        if not seeds:
            continue
        means = {method: statistics.mean(own[seed] for seed in seeds) for method, own in found.items()}
        gain = means["lt"] - means["mod"]
        shares = [f"{(means[control] - means['mod']) / gain:.0%}" if gain > 0 else "" for control in CONTROLS]
        cells = [f"{dataset} {target:.0%}, {name}", str(len(seeds)), f"{gain:.4f}", *shares]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def paired(runs: dict, one: str, other: str) -> Iterator[tuple[dict, dict]]:
    """Results of two systems on the same data, target and seed; what is not trained is the same for all."""
    for dataset, target in product(DATASETS, TARGETS):
        others = {result["seed"]: result for result in runs.get((dataset, other, target), [])}
        for result in runs.get((dataset, one, target), []):
            match = others.get(0 if other in TRAINING_FREE else result["seed"])
            if match is not None:
                yield result, match


def missing_lines() -> list[str]:
    """What of the plan has not been run, and how to run it."""
    left = Counter(run.method for run in all_runs() if not run.done)
    if not left:
        return []
    planned = Counter(run.method for run in all_runs())
    words = [f"{NAMES[method]} ({count} of {planned[method]} runs)" for method, count in left.items()]
    return [f"Not run yet (`make reproduction` does): {'; '.join(words)}.", ""]


def main() -> None:
    starts, runs = load_starts(), defaultdict(list)
    for result in load():
        runs[result["dataset"], result["method"], result["target"]].append(result)
    times = latency.load()
    lines = missing_lines()
    for dataset in DATASETS:
        own = times if dataset == latency.DATASET else None
        lines += quality_table(dataset, starts[dataset], runs, own)
    if times is not None:
        lines += [f"![Quality of every system at {times['target']:.0%} against its cost]({COSTS.name})", ""]
        draw_costs(COSTS, cost_points(runs, times), times)
    lines += ["### Where the error is", "", *quarters_table(runs)]
    lines += ["### What was learned", "", *learned_table(runs)]
    lines += ["### Claims", "", *claims_table(runs), "### Against each other", "", *pairs_table(runs)]
    lines += ["### What the gain is made of", "", *gains_table(runs)]
    text = DOCUMENT.read_text()
    for start, own in ((START, lines), (REPAINTING, twins_tables.lines())):
        before, rest = text.split(start)
        text = f"{before}{start}\n\n" + "\n".join(own) + f"\n{END}{rest.partition(END)[2]}"
    DOCUMENT.write_text(text)
    draw(PICTURE, runs, NAMES)
    print(f"written to {DOCUMENT.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
