"""Models whose weights are elsewhere, offloaded or on the meta device: right, or an error with the remedy."""

import copy

import pytest
import torch
from accelerate import Accelerator, cpu_offload, disk_offload, dispatch_model, init_empty_weights
from safetensors.torch import load_file
from torch.utils._pytree import tree_map

from diffratio import (
    apply_diffratio,
    freeze_ratios,
    learn_ratios,
    load_diffratio,
    remove_diffratio,
    save_diffratio,
    summary,
)
from diffratio.routing import adapter
from diffratio.routing.find import TABLE_NAME, routed_blocks, routed_model
from tools.guards.poison import poisoned_memory


def dispatched(model, folder):
    places = {name: "cpu" for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))}
    del places["transformer_blocks"]
    places |= {f"transformer_blocks.{i}": "disk" if i else "cpu" for i in range(3)}
    if hasattr(model, TABLE_NAME):
        places[TABLE_NAME] = "disk"
    dispatch_model(model, places, offload_dir=folder, main_device="cpu", force_hooks=True)


def grouped(kind, on_disk):
    def offload(model, folder):
        model.enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_type=kind,
            num_blocks_per_group=2 if kind == "block_level" else None,
            offload_to_disk_path=str(folder) if on_disk else None,
        )

    return offload


AWAY = {
    "accelerate": lambda model, folder: cpu_offload(model, execution_device="cpu"),
    "accelerate, disk": lambda model, folder: disk_offload(model, folder, execution_device="cpu"),
    "device map": dispatched,
    "blocks on disk": grouped("block_level", on_disk=True),
    "leaves on disk": grouped("leaf_level", on_disk=True),
}
"""What leaves nothing, or memory that nobody wrote, where the parameters were."""
IN_MEMORY = {
    "blocks": grouped("block_level", on_disk=False),
    "leaves": grouped("leaf_level", on_disk=False),
}


def of_models(offloads):
    """Every offload of both models; diffusers' group offloading does not serve its DiT."""
    pairs = [("pixart", name) for name in offloads]
    pairs += [("dit", name) for name in offloads if name.startswith(("accelerate", "device map"))]
    values = [pytest.param(kind, offloads[name], id=f"{kind}, {name}") for kind, name in pairs]
    return pytest.mark.parametrize("kind, offload", values)


away, in_memory, everywhere = of_models(AWAY), of_models(IN_MEMORY), of_models(AWAY | IN_MEMORY)
both = pytest.mark.parametrize("kind", ["pixart", "dit"])


@pytest.fixture
def model(tiny, kind):
    return tiny.make(kind)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "offloaded").mkdir()
    return tmp_path / "offloaded"


def files(directory):
    return (directory / adapter.CONFIG_NAME).read_text(), load_file(directory / adapter.WEIGHTS_NAME)


def same_files(one, other):
    (config, weights), (others, theirs) = files(one), files(other)
    return (
        config == others
        and weights.keys() == theirs.keys()
        and all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items())
    )


@away
def test_what_is_away_left_no_values(tiny, model, folder, offload):
    tiny.route(model)
    with poisoned_memory():
        offload(model, folder)
    left = [block.diffratio.router_weight for block in routed_blocks(model)[1:]]
    assert all(weight.is_meta or weight.isnan().all() for weight in left)


@pytest.mark.parametrize("learns", [False, True])
@everywhere
def test_saving_fetches_what_is_away_and_leaves_the_model_as_it_was(
    tiny, model, tmp_path, folder, offload, learns
):
    tiny.route(model, router_bias=True)
    inputs = tiny.inputs(model)
    if learns:
        learn_ratios(model, start=0.63)
    save_diffratio(model, tmp_path / "before")
    expected = tiny.run(model, inputs)
    with poisoned_memory():
        offload(model, folder)
        save_diffratio(model, tmp_path / "after")
        assert same_files(tmp_path / "before", tmp_path / "after")
    if not learns:
        torch.testing.assert_close(tiny.run(model, inputs), expected, rtol=0, atol=1e-5)
        with poisoned_memory():
            save_diffratio(model, tmp_path / "after a call")
        assert same_files(tmp_path / "before", tmp_path / "after a call")


@in_memory
def test_an_adapter_reaches_routers_that_are_offloaded_in_memory(tiny, model, tmp_path, folder, offload):
    save_diffratio(tiny.route(copy.deepcopy(model), 0.3), tmp_path)
    expected = tiny.run(load_diffratio(copy.deepcopy(model), tmp_path), tiny.inputs(model))
    apply_diffratio(model)
    offload(model, folder)
    load_diffratio(model, tmp_path)
    torch.testing.assert_close(tiny.run(model, tiny.inputs(model)), expected, rtol=0, atol=1e-5)


@away
def test_an_adapter_for_routers_that_are_away_is_an_error_that_changes_nothing(
    tiny, model, tmp_path, folder, offload
):
    save_diffratio(tiny.route(copy.deepcopy(model), 0.3), tmp_path)
    tiny.route(model, 0.6)
    offload(model, folder)
    before = tiny.run(model, tiny.inputs(model))
    with pytest.raises(ValueError, match=r"^model \w+: its routers are offloaded"):
        load_diffratio(model, tmp_path)
    assert torch.equal(tiny.run(model, tiny.inputs(model)), before)


@away
def test_learning_begins_and_ends_where_the_values_are(tiny, model, folder, offload):
    offload(tiny.route(model), folder)
    with pytest.raises(ValueError, match=r"^model \w+: its routers are offloaded"):
        learn_ratios(model)
    assert not hasattr(model, TABLE_NAME) and routed_model(model).ratios is None


@away
def test_ratios_that_were_offloaded_while_learned_are_not_read(tiny, model, folder, offload):
    learn_ratios(tiny.route(model), start=0.63)
    config = routed_model(model).config
    offload(model, folder)
    calls = {
        "run": lambda: tiny.run(model, tiny.inputs(model)),
        "train": lambda: tiny.run(model, tiny.inputs(model), grad=True),
        "summary": lambda: summary(model),
        "freeze": lambda: freeze_ratios(model),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"^model \w+: its ratios are learned and are offloaded"):
            call()
    assert routed_model(model).config == config and hasattr(model, TABLE_NAME)


@in_memory
def test_ratios_that_are_offloaded_in_memory_count(tiny, model, folder, offload):
    learn_ratios(tiny.route(model), start=0.63)
    expected = tiny.run(model, tiny.inputs(model))
    offload(model, folder)
    torch.testing.assert_close(tiny.run(model, tiny.inputs(model)), expected, rtol=0, atol=1e-5)
    assert freeze_ratios(model) == [[6]] * tiny.layers


@everywhere
def test_blocks_that_are_offloaded_are_not_patched(tiny, model, folder, offload):
    expected = tiny.run(model, tiny.inputs(model))
    offload(model, folder)
    with pytest.raises(ValueError, match="Apply diffratio before caches, offloading"):
        apply_diffratio(model)
    assert not routed_blocks(model) and "_diffratio_model" not in vars(model)
    torch.testing.assert_close(tiny.run(model, tiny.inputs(model)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["pixart"])
@pytest.mark.parametrize("name", AWAY | IN_MEMORY)
def test_removal_of_blocks_that_offloading_has_hooked_is_refused(tiny, model, folder, name):
    (AWAY | IN_MEMORY)[name](tiny.route(model), folder)
    before = tiny.run(model, tiny.inputs(model))
    with pytest.raises(ValueError, match="was hooked after apply_diffratio; remove that hook first"):
        remove_diffratio(model)
    assert torch.equal(tiny.run(model, tiny.inputs(model)), before)


@pytest.mark.parametrize("kind", ["dit"])
@pytest.mark.parametrize("name", ["accelerate", "accelerate, disk"])
def test_removal_of_blocks_that_offloading_has_not_hooked_leaves_the_dense_model(tiny, model, folder, name):
    """accelerate hooks what has parameters of its own: DiT's blocks have none."""
    dense = tiny.run(model, tiny.inputs(model))
    AWAY[name](tiny.route(model), folder)
    remove_diffratio(model)
    assert torch.equal(tiny.run(model, tiny.inputs(model)), dense)


@both
def test_accelerate_saves_every_tensor_of_an_offloaded_model(tiny, model, tmp_path):
    state = copy.deepcopy(tiny.route(model).state_dict())
    cpu_offload(model, execution_device="cpu")
    Accelerator(cpu=True).save_model(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    # The parameters of the model itself are accelerate's to lose: it looks at its submodules only.
    assert state.keys() - saved.keys() == dict(model.named_parameters(recurse=False)).keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.items())


@pytest.fixture
def empty(model):
    """The model on the meta device."""
    with init_empty_weights():
        return type(model).from_config(model.config).eval()


@both
def test_a_model_without_values_is_a_named_error(tiny, model, empty, tmp_path):
    save_diffratio(tiny.route(copy.deepcopy(model)), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"^model \w+: its routers are on the meta device"):
        load_diffratio(empty, tmp_path / "adapter")
    assert not routed_blocks(empty) and "_diffratio_model" not in vars(empty)
    apply_diffratio(empty)
    calls = {
        "load": lambda: load_diffratio(empty, tmp_path / "adapter"),
        "save": lambda: save_diffratio(empty, tmp_path / "new"),
        "learn": lambda: learn_ratios(empty),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"^model \w+: its routers are on the meta device"):
            call()
    assert not (tmp_path / "new").exists() and not hasattr(empty, TABLE_NAME)


@both
def test_a_call_without_values_has_shapes_and_gradients(tiny, model):
    inputs = tiny.inputs(tiny.route(model))
    expected = tiny.run(model, inputs)
    model.to("meta")
    inputs = tree_map(lambda t: t.to("meta") if isinstance(t, torch.Tensor) else t, inputs)
    for grad in (False, True):
        out = tiny.run(model, inputs, grad)
        assert out.is_meta and out.shape == expected.shape
    out.sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@both
def test_assigned_weights_make_the_model(tiny, model, empty):
    inputs, state = tiny.inputs(model), tiny.route(model).state_dict()
    apply_diffratio(empty, routed_model(model).config)
    empty.load_state_dict(state, assign=True)
    for grad in (False, True):
        assert torch.equal(tiny.run(empty, inputs, grad), tiny.run(model, inputs, grad))


@both
def test_a_dense_checkpoint_leaves_routers_without_values_and_a_call_says_so(tiny, model, empty):
    apply_diffratio(empty)
    empty.load_state_dict(model.state_dict(), assign=True, strict=False)
    for grad in (False, True):
        with pytest.raises(ValueError, match="router_weight must be on cpu like x, got meta"):
            tiny.run(empty, tiny.inputs(model), grad)


@both
def test_what_comes_from_the_meta_device_is_drawn_and_not_found_in_memory(tiny, model):
    apply_diffratio(model)
    learn_ratios(model, start=0.7)
    model.to("meta")
    with poisoned_memory():
        model.to_empty(device="cpu")
    assert model.transformer_blocks[0].attn1.to_q.weight.isnan().all()  # a weight is the caller's to load
    weights = torch.cat([block.diffratio.router_weight for block in model.transformer_blocks])
    assert 0.5e-3 < weights.std() < 2e-3
    assert routed_model(model).ratios.nearest() == [[7]] * tiny.layers
