"""The tables of repainting in docs/reproduction.md."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict

from benchmarks.reproduction.twins import START, SYSTEMS, TARGET, all_repaints

SYSTEM_NAMES = {"lazy": "lazy", "image": "RegenerateImage", "crop": "RegenerateCrop"}
METHOD_NAMES = {
    START: "dense, before",
    "dense": "dense, the same steps",
    "mod": f"uniform MoD, {TARGET:.0%}",
    "l": f"DiffRatio-L, {TARGET:.0%}",
    "lt": f"DiffRatio-LT, {TARGET:.0%}",
}
HEAD = (
    "| model | seeds | mean kept (bins) | FLOPs of a step | encoder, once | P(match) | shown nothing "
    "| hole MSE | v-MSE in the hole | Frechet | attributes | differ outside |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)
PAIRS = (
    (("lazy", "lt"), ("lazy", "mod")),
    (("lazy", "l"), ("lazy", "mod")),
    (("lazy", "lt"), ("lazy", "l")),
    (("image", "dense"), ("lazy", "dense")),
    (("lazy", "dense"), ("crop", "dense")),
    (("image", "lt"), ("lazy", "lt")),
    (("lazy", "lt"), ("crop", "lt")),
)
"""What is compared, the first with the second."""


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def load() -> dict[tuple[str, str], list[dict]]:
    """(system, method) -> the results of its seeds that stand for today's settings, in the order of the
    table."""
    found = defaultdict(list)
    for run in all_repaints():
        if run.done:
            found[run.system, run.method].append(json.loads(run.result.read_text()))
    order = [(system, method) for system in SYSTEMS for method in (START, *SYSTEMS[system])]
    return {key: found[key] for key in order if key in found}


def lines() -> list[str]:
    """What is written into the document."""
    results = load()
    if not results:
        return missing_lines()
    return [*missing_lines(), *quality_table(results), *pairs_table(results)]


def name_of(system: str, method: str) -> str:
    return f"{SYSTEM_NAMES[system]}, {METHOD_NAMES[method]}"


def quality_table(results: dict[tuple[str, str], list[dict]]) -> list[str]:
    """A row for each system of which there is a result."""
    real = next(iter(results.values()))[0]["real"]
    cells = f"{real['accuracy_joint']:.3f} | | | | {real['frechet']:.2f} | {real['accuracy_mean']:.3f} | |"
    return [
        HEAD,
        f"| real held-out images | | | | | {cells}",
        *(row(name_of(*key), found) for key, found in results.items()),
        "",
    ]


def row(name: str, results: list[dict]) -> str:
    quality = [result["quality"] for result in results]
    outside = sum(result[shown]["outside_differing"] for result in results for shown in ("quality", "hidden"))
    cells = [
        str(len(results)),
        spread([result["mean_kept_in_bins"] for result in results], 3),
        spread([result["flops_of_dense"] for result in results], 3),
        f"{results[0]['encoder_flops_of_dense']:.3f}" if results[0]["encoder_flops_of_dense"] else "",
        spread([one["accuracy_joint"] for one in quality], 3),
        spread([result["hidden"]["accuracy_joint"] for result in results], 3),
        spread([one["hole_error"] for one in quality], 4),
        spread([one["v_mse"] for one in quality], 4),
        spread([one["frechet"] for one in quality], 2),
        spread([one["accuracy_mean"] for one in quality], 3),
        str(outside),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def pairs_table(results: dict[tuple[str, str], list[dict]]) -> list[str]:
    """One system against another, seed by seed; nothing where no two have been run."""
    found = []
    for one, other in PAIRS:
        others = {result["seed"]: result["quality"] for result in results.get(other, [])}
        own = {result["seed"]: result["quality"] for result in results.get(one, [])}
        pairs = [(own[seed], others[seed]) for seed in own if seed in others]
        metrics = (("accuracy_joint", -1), ("hole_error", 1), ("v_mse", 1), ("frechet", 1))
        if pairs:
            counts = [
                f"{sum(sign * a[name] < sign * b[name] for a, b in pairs)} of {len(pairs)}"
                for name, sign in metrics
            ]
            found.append(f"| {name_of(*one)} than {name_of(*other)} | {' | '.join(counts)} |")
    if not found:
        return []
    head = ["| better by | P(match) | hole MSE | v-MSE in the hole | Frechet |", "|---|---|---|---|---|"]
    return [*head, *found, ""]


def missing_lines() -> list[str]:
    """What of the plan has not been run."""
    runs = all_repaints()
    planned = Counter((run.system, run.method) for run in runs)
    left = Counter((run.system, run.method) for run in runs if not run.done)
    if not left:
        return []
    words = [f"{name_of(*key)} ({count} of {planned[key]} runs)" for key, count in left.items()]
    return [f"Not run yet (`make reproduction` does): {'; '.join(words)}.", ""]
