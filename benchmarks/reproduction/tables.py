"""The tables of docs/reproduction.md, which tables.py writes between its markers, and its picture."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict

from benchmarks.reproduction.figure import draw
from benchmarks.reproduction.plan import DATASETS, LEARNED, RESULTS, ROOT, SEEDS, TARGETS, is_done

DOCUMENT = ROOT / "docs" / "reproduction.md"
PICTURE = DOCUMENT.with_suffix(".png")
START, END = "<!-- measured: tables.py writes from here -->", "<!-- to here -->"
NAMES = {"dense": "dense", "mod": "uniform MoD", "l": "DiffRatio-L", "lt": "DiffRatio-LT"}
HEAD = (
    "| model | mean kept (ratios) | mean kept (bins) | FLOPs of dense | v-MSE | Frechet | attributes "
    "| all right |\n"
    "|---|---|---|---|---|---|---|---|"
)


def load() -> list[dict]:
    """Every result that stands for today's models and settings, seeds in order."""
    paths = [
        path for name in DATASETS for path in sorted(RESULTS.glob(f"{name}-*.json")) if is_done(path, name)
    ]
    return [json.loads(path.read_text()) for path in paths]


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def mean_ratio(result: dict) -> float:
    """The mean of the learned ratios; of the bins where nothing is learned."""
    if not result.get("ratios"):
        return result["mean_kept_in_bins"]
    return statistics.mean(ratio for row in result["ratios"][-1]["ratios"] for ratio in row)


def row(name: str, results: list[dict]) -> str:
    quality = [result["quality"] for result in results]
    cells = [
        spread([mean_ratio(result) for result in results], 3),
        spread([result["mean_kept_in_bins"] for result in results], 3),
        spread([result["flops_of_dense"] for result in results], 3),
        spread([one["v_mse"] for one in quality], 4),
        spread([one["frechet"] for one in quality], 2),
        spread([one["accuracy_mean"] for one in quality], 3),
        spread([one["accuracy_joint"] for one in quality], 3),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def quality_table(dataset: str, start: dict, runs: dict) -> list[str]:
    real = start["real"]
    lines = [f"### {dataset}", "", HEAD]
    lines.append(
        f"| real held-out images | | | | | {real['frechet']:.2f} | {real['accuracy_mean']:.3f} | "
        f"{real['accuracy_joint']:.3f} |"
    )
    lines.append(row("dense, before", [start]))
    lines.append(row("dense, the same steps", runs[dataset, "dense", 0.0]))
    for target in TARGETS:
        lines += [
            row(f"{NAMES[method]}, {target:.0%}", runs[dataset, method, target])
            for method in ("mod", *LEARNED)
        ]
    return [*lines, ""]


def learned_table(runs: dict) -> list[str]:
    """What the ratios look like: how far layers differ, and what each timestep region keeps."""
    lines = [
        "| run | kept per layer, mean over seeds | deviation over layers | kept per region, clean to noisy |",
        "|---|---|---|---|",
    ]
    for (dataset, method, target), results in runs.items():
        if method not in LEARNED:
            continue
        tables = [result["ratios"][-1]["ratios"] for result in results]
        layers = [[statistics.mean(row) for row in table] for table in tables]
        regions = [[statistics.mean(column) for column in zip(*table, strict=True)] for table in tables]
        mean_layers = [statistics.mean(column) for column in zip(*layers, strict=True)]
        mean_regions = [statistics.mean(column) for column in zip(*regions, strict=True)]
        deviation = [statistics.pstdev(row) for row in layers]
        lines.append(
            f"| {dataset} {NAMES[method]} {target:.0%} | {' '.join(f'{v:.2f}' for v in mean_layers)} | "
            f"{spread(deviation, 3)} | "
            f"{' '.join(f'{v:.2f}' for v in mean_regions) if len(mean_regions) > 1 else ''} |"
        )
    return [*lines, ""]


def claims_table(runs: dict) -> list[str]:
    """The paper's claims, counted run by run."""
    learned = [result for key, results in runs.items() if key[1] in LEARNED for result in results]
    gaps = [abs(mean_ratio(result) - (1 - result["target"])) for result in learned]
    bins = [abs(result["mean_kept_in_bins"] - (1 - result["target"])) for result in learned]
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
        f"| mean ratio within 1 point of the target | {sum(g <= 0.01 for g in gaps)} of {len(gaps)} runs, "
        f"largest gap {100 * max(gaps):.2f} points |",
        f"| mean of the bins at inference within 1 point | {sum(g <= 0.01 + 1e-9 for g in bins)} of "
        f"{len(bins)}, largest gap {100 * max(bins):.2f} points |",
        f"| layers differ (deviation above 0.01) | {sum(d > 0.01 for d in layers)} of {len(layers)} |",
        f"| the cleanest region keeps most, the noisiest less | {noisier} of {len(lt)} LT runs; "
        f"monotone over all four: {monotone} |",
    ]
    for better, worse in (("l", "mod"), ("lt", "mod"), ("lt", "l")):
        counts = {}
        for metric, sign in (("v_mse", 1), ("frechet", 1), ("accuracy_joint", -1)):
            pairs = [
                (a["quality"][metric], b["quality"][metric])
                for dataset in DATASETS
                for target in TARGETS
                for a, b in zip(runs[dataset, better, target], runs[dataset, worse, target], strict=True)
            ]
            counts[metric] = f"{sum(sign * a < sign * b for a, b in pairs)} of {len(pairs)}"
        lines.append(
            f"| {NAMES[better]} better than {NAMES[worse]} | v-MSE {counts['v_mse']}, "
            f"Frechet {counts['frechet']}, all attributes {counts['accuracy_joint']} |"
        )
    return [*lines, ""]


def main() -> None:
    starts, runs = {}, defaultdict(list)
    for result in load():
        if "method" in result:
            runs[result["dataset"], result["method"], result["target"]].append(result)
        else:
            starts[result["name"].removesuffix("-start")] = result
    missing = [key for key, results in runs.items() if len(results) != len(SEEDS)]
    if missing or len(runs) != len(DATASETS) * (1 + 3 * len(TARGETS)) or len(starts) != len(DATASETS):
        raise SystemExit(f"the reproduction is not complete: {missing or sorted(runs)}")
    lines = []
    for dataset in DATASETS:
        lines += quality_table(dataset, starts[dataset], runs)
    lines += ["### What was learned", "", *learned_table(runs), "### Claims", "", *claims_table(runs)]
    text = DOCUMENT.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{START}\n\n" + "\n".join(lines) + f"\n{END}{after}")
    draw(PICTURE, runs, NAMES)
    print(f"written to {DOCUMENT.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
