"""What would be silently wrong is an error; what looks unusual but is fine works."""

import accelerate
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diffratio import (
    apply_diffratio,
    disable_diffratio,
    load_diffratio,
    record_routing,
    save_diffratio,
    summary,
)


def test_a_hook_on_a_norm_is_an_error_before_and_after_apply(tiny):
    model = tiny.pixart()
    handle = model.transformer_blocks[1].norm2.register_forward_hook(lambda module, args, output: output * 0)
    tiny.route(model)
    with pytest.raises(ValueError, match="norm"):
        tiny.run(model, tiny.inputs(model))
    handle.remove()
    tiny.run(model, tiny.inputs(model))


def test_an_adapter_of_another_architecture_is_refused(tiny, tmp_path):
    save_diffratio(tiny.route(tiny.pixart()), tmp_path)
    model = tiny.dit()
    with pytest.raises(ValueError, match="directory: the adapter is for a PixArtTransformer2DModel"):
        load_diffratio(model, tmp_path)
    assert not any("diffratio" in name for name, _ in model.named_modules())


def test_reentrant_checkpointing_with_regions_is_an_error_where_it_would_be_wrong(tiny):
    model = tiny.pixart(num_layers=1)
    tiny.route(model, num_regions=2, overrides={0: [0.2, 0.7]})
    model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block, *args, use_reentrant=True))
    loss = tiny.run(model, tiny.inputs(model), grad=True).sum()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss.backward()


def test_a_block_called_alone_needs_a_timestep_for_its_regions(tiny):
    """PixArt's blocks get an embedding: counts of some other call would be wrong without a word."""
    model = tiny.route(tiny.pixart(num_layers=1), num_regions=2, overrides={0: [0.2, 0.7]})
    x, timestep = torch.randn(2, 16, model.inner_dim), torch.randn(2, 6 * model.inner_dim)
    with pytest.raises(
        RuntimeError, match=r"transformer_blocks.0: no timestep was seen, .* 2 timestep regions"
    ):
        model.transformer_blocks[0](x, None, torch.randn(2, 5, model.inner_dim), None, timestep)


def test_applying_again_switches_on(tiny):
    model = tiny.route(tiny.pixart())
    disable_diffratio(model)
    assert summary(apply_diffratio(model)).enabled


def test_a_recording_inside_a_recording_is_part_of_both(tiny):
    model = tiny.route(tiny.pixart())
    inputs = tiny.inputs(model)
    with record_routing(model) as outer:
        tiny.run(model, inputs)
        with record_routing(model) as inner:
            tiny.run(model, inputs)
        tiny.run(model, inputs)
    assert (len(inner), len(outer)) == (3, 9)


def test_offloaded_models_run_and_give_the_same(tiny):
    model = tiny.route(tiny.pixart())
    inputs = tiny.inputs(model)
    expected = tiny.run(model, inputs)
    accelerate.cpu_offload(model, execution_device="cpu")
    torch.testing.assert_close(tiny.run(model, inputs), expected, rtol=0, atol=1e-5)
