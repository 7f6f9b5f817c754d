"""Which tokens every routed block keeps, and how its router scores them, recorded."""

from contextlib import contextmanager

from .find import routed_layers, routed_model, transformer_of


@contextmanager
def record_routing(model_or_pipe):
    """Collect every selection made inside. A recording inside another one is part of it too.

    Args:
        model_or_pipe: a routed model, or a pipeline with one.

    Yields:
        A list of `Routing`, one per call of a block: layer, timestep, index [T], shape (B, N), logits [B, N],
        and `kept()`, a mask [B, N], and `scores()` [B, N] in 0..1.

    Raises:
        ValueError: the model is not patched.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.3))
        >>> with torch.no_grad(), record_routing(model) as log:
        ...     sample = model(latents, **inputs).sample
        >>> masks = [routing.kept() for routing in log]
    """
    model = transformer_of(model_or_pipe)
    shared = routed_model(model)
    routed_layers(model)  # numbers the layers as they stand
    outer, shared.record = shared.record, []
    log = shared.record
    try:
        yield log
    finally:
        shared.record = outer
        if outer is not None:
            outer += log
