"""Put a baseline on a model, and take it off again."""

from dataclasses import replace

from ..config import DiffRatioConfig
from ..routing.apply import apply_diffratio, patch, refuse_reducer, unpatch
from ..routing.find import routed_model, transformers_of, unwrapped
from .atedm import ITERATIONS, OPEN_STEPS, AtEdm
from .calls import Baseline
from .named import UniformMod, parse_baseline
from .tome import Tome


def apply_tome(model_or_pipe, ratio: float, merge: str = "attn", seed: int = 0):
    """Token merging (ToMe for diffusion) in every block, in place and without training.

    Of every 2 x 2 tokens one, drawn for each call of a block, takes others in; batches of odd size draw none
    and take the first. A model that is called with images [B, C, height, width] is merged: in its MLPs
    whatever the family, in attention where that knows no places (rope).

    Args:
        model_or_pipe: a diffusers model or a pipeline, without routers and without a baseline.
        ratio: part of the tokens that merge into others, 0 to 0.75: int(N * ratio). 0 is bit-equal to the
            model as it is.
        merge: "attn" (self-attention: what its authors advise), "mlp" (the paper's Table 1) or "all"
            (attention to the text too).
        seed: of the draws, in the order of the calls.

    Returns:
        What it was given.

    Raises:
        ValueError: a bad argument, or a model that has routers or a baseline or no known block; a family
            whose tokens cannot be merged is one when it is called. The text says why.

    Example:
        >>> from diffratio.baselines import apply_tome, remove_baseline
        >>> merged = apply_tome(model, 0.2, merge="mlp")(latents, **inputs).sample
        >>> model = remove_baseline(model)
    """
    return put(model_or_pipe, Tome(ratio, merge, seed))


def apply_atedm(
    model_or_pipe,
    ratio: float,
    refill: str = "copy",
    iterations: int = ITERATIONS,
    open_layers: int | None = None,
    open_steps: float = OPEN_STEPS,
):
    """AT-EDM's pruning in every block, in place and without training: behind self-attention the tokens that
    least attention goes to skip what is left of the block.

    Its authors' code is not public. The defaults are a reading whose FLOPs are those of the paper's Table 1.

    Args:
        model_or_pipe: as of `apply_tome`.
        ratio: part of the tokens that are pruned, 0 to 0.9; floor((1 - ratio) * N) are kept.
        refill: what pruned tokens get: "copy", the finished row of the kept token that they attend to most,
            or "residual", what they are after self-attention.
        iterations: of the page rank.
        open_layers: how many layers prune nothing in the noisiest steps, half of them at each end of the
            model; None is two sevenths, 8 of 28.
        open_steps: the part of the noise levels in which they do not, in tenths; known by the timestep.

    Returns:
        What it was given.

    Raises:
        ValueError: as of `apply_tome`.

    Example:
        >>> from diffratio.baselines import apply_atedm, remove_baseline
        >>> pruned = apply_atedm(model, 0.2, refill="residual")(latents, **inputs).sample
        >>> model = remove_baseline(model)
    """
    return put(model_or_pipe, AtEdm(ratio, refill, iterations, open_layers, open_steps))


def apply_baseline(model_or_pipe, text: str):
    """Put the baseline of a name on a model.

    Args:
        model_or_pipe: as of `apply_tome`; for mod also one that is routed, whose routers stay.
        text: as of `parse_baseline`.

    Returns:
        What it was given.

    Raises:
        ValueError: as of `parse_baseline` and `apply_tome`.

    Example:
        >>> from diffratio.baselines import apply_baseline, remove_baseline
        >>> model = remove_baseline(apply_baseline(model, "atedm:0.2"))
    """
    baseline = parse_baseline(text)
    if isinstance(baseline, UniformMod):
        return apply_diffratio(model_or_pipe, DiffRatioConfig(baseline.ratio, rounding=baseline.rounding))
    return put(model_or_pipe, baseline)


def put(model_or_pipe, baseline: Baseline):
    """A baseline on every transformer of a model or pipeline, each with its own state."""
    models = [unwrapped(model) for model in transformers_of(model_or_pipe)]
    for model, wrappers in models:
        if "_diffratio_model" in vars(model):
            found = routed_model(model, baseline=True).baseline
            has, remedy = ("routers", "remove_diffratio")
            if found is not None:
                has, remedy = (f"the baseline {found.name}", "remove_baseline")
            name = type(model).__name__
            raise ValueError(f"{baseline.name}: model {name} has {has}; call {remedy} first")
        if (reason := getattr(model, "why_no_baseline", None)) is not None:
            raise ValueError(f"{baseline.name} does not apply to {type(model).__name__}: {reason}")
        refuse_reducer(model, wrappers, f"the baseline {baseline.name}")
    for model, _ in models:
        patch(model, DiffRatioConfig(0.0, num_regions=baseline.regions), replace(baseline))
    return model_or_pipe


def remove_baseline(model_or_pipe):
    """Undo `apply_tome` or `apply_atedm`: the model is bit-equal to what it was.

    Args:
        model_or_pipe: a model with a baseline, or a pipeline with one.

    Returns:
        What it was given.

    Raises:
        ValueError: there is no baseline, or a block was hooked afterwards.

    Example:
        >>> from diffratio.baselines import apply_tome, remove_baseline
        >>> model = remove_baseline(apply_tome(model, 0.2))
    """
    models = [unwrapped(model)[0] for model in transformers_of(model_or_pipe)]
    for model in models:
        shared = vars(model).get("_diffratio_model")
        if shared is None or shared.baseline is None:
            raise ValueError(f"model {type(model).__name__} has no baseline (call apply_tome or apply_atedm)")
    for model in models:
        unpatch(model)
    return model_or_pipe
