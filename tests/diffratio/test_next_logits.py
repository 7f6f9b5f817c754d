"""Router logits that a layer makes for the next one: for the very tensor they are of, and gone with it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffratio import cuda_graphs, disable_diffratio, model_graphs, next_logits, record_routing, routed
from diffratio.patch import plan_of, routed_blocks


@pytest.fixture
def used(monkeypatch):
    """Of every fused layer that runs: whether it was given logits, and whether it made the next ones."""
    seen = []

    def watch(function, makes):
        def call(*args, **kwargs):
            seen.append((kwargs.get("logits") is not None, makes))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(routed, "mod_block", watch(routed.mod_block, False))
    monkeypatch.setattr(routed, "mod_block_next", watch(routed.mod_block_next, True))
    return seen


@pytest.fixture
def everywhere(monkeypatch, used):
    """Here too the next logits are made, as they are on a GPU."""
    monkeypatch.setattr(next_logits, "makes_next_logits", lambda x: True)


CHAIN = [(False, True), (True, True), (True, False)]
ALONE = [(False, False)] * 3


@pytest.fixture(params=["pixart", "dit"])
def model(request, tiny):
    return tiny.route(tiny.make(request.param), router_bias=request.param == "dit")


def expected(tiny, model, inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_logits, "makes_next_logits", lambda x: False)
        return tiny.run(model, inputs)


def test_each_layer_is_given_what_the_layer_before_it_made(tiny, model, used, everywhere):
    inputs = tiny.inputs(model)
    alone = expected(tiny, model, inputs)
    assert used == ALONE
    for _ in range(2):
        used.clear()
        assert torch.equal(tiny.run(model, inputs), alone)
        assert used == CHAIN and len(plan_of(model).next_logits) == 0


def test_logits_that_are_given_decide(tiny, model, monkeypatch, everywhere):
    inputs = tiny.inputs(model)
    before, plain = tiny.run(model, inputs), routed.mod_block_next
    monkeypatch.setattr(
        routed, "mod_block_next", lambda *a, **k: (lambda out, logits: (out, -logits))(*plain(*a, **k))
    )
    assert not torch.allclose(tiny.run(model, inputs), before)


def changed_in_place(model, out):
    out.mul_(1.1)


def changed_through_a_view(model, out):
    out[0].neg_()


def replaced(model, out):
    return out.clone()


def router_changed(model, out):
    routed_blocks(model)[1].diffratio.router_weight.neg_()


def router_replaced(model, out):
    router = routed_blocks(model)[1].diffratio
    router.router_weight = nn.Parameter(router.router_weight.flip(0))


def bias_changed(model, out):
    routed_blocks(model)[1].diffratio.router_bias.add_(1)


@pytest.mark.parametrize(
    "between",
    [changed_in_place, changed_through_a_view, replaced, router_changed, router_replaced, bias_changed],
    ids=lambda change: change.__name__,
)
def test_what_changes_between_two_layers_is_seen(tiny, used, everywhere, between):
    model = tiny.route(tiny.dit(), router_bias=True)
    inputs, other = tiny.inputs(model), copy.deepcopy(model)
    for each in (model, other):
        block = routed_blocks(each)[0]
        plain = block.forward
        block.forward = lambda *args, plain=plain, each=each, **kwargs: hooked(each, plain(*args, **kwargs))

    def hooked(each, out):
        changed = between(each, out)
        return out if changed is None else changed

    alone = expected(tiny, other, inputs)
    used.clear()
    assert torch.equal(tiny.run(model, inputs), alone)
    assert used == [(False, True), (False, True), (True, False)]


def test_a_bypassed_layer_is_given_nothing(tiny, model, used, everywhere):
    plan_of(model).layers[1].tenths = [0]
    inputs = tiny.inputs(model)
    alone = expected(tiny, model, inputs)
    used.clear()
    assert torch.equal(tiny.run(model, inputs), alone) and used == [(False, False), (False, False)]


def test_a_layer_whose_modules_run_makes_its_own(tiny, model, used, everywhere):
    block = routed_blocks(model)[1]
    block.attn1.to_q.register_forward_hook(lambda *_: None)
    inputs = tiny.inputs(model)
    alone = expected(tiny, model, inputs)
    used.clear()
    assert torch.equal(tiny.run(model, inputs), alone)
    assert used == [(False, True), (False, False)] and len(plan_of(model).next_logits) == 0


def test_where_nothing_is_handed_over(tiny, model, used, everywhere):
    inputs = tiny.inputs(model)
    with record_routing(model):
        tiny.run(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        tiny.run(model, inputs)
    with torch.inference_mode():
        model(**inputs)
    assert used == 3 * ALONE
    used.clear()
    model(**inputs, return_dict=False)[0].sum().backward()
    disable_diffratio(model)
    tiny.run(model, inputs)
    assert used == []


def test_on_the_cpu_no_kernel_makes_them(tiny, model, used):
    tiny.run(model, tiny.inputs(model))
    assert used == ALONE


@pytest.mark.parametrize("chosen", ["cuda", "triton", "reference"])
def test_the_kernels_of_a_gpu_make_them(chosen, monkeypatch):
    monkeypatch.setattr(next_logits, "choose", lambda *_: chosen)
    x = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), dtype=torch.bfloat16)
    assert next_logits.makes_next_logits(x) == (chosen != "reference")
    x.is_cuda = False
    assert not next_logits.makes_next_logits(x)


def test_a_compiled_block_hands_nothing_over(monkeypatch):
    x = torch.zeros(1)
    with torch.no_grad():
        assert next_logits.handed_over(x)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not next_logits.handed_over(x)


def test_they_are_gone_with_their_tensor_and_taken_once():
    router = SimpleNamespace(router_weight=torch.ones(4), router_bias=None)
    kept, x, logits = next_logits.NextLogits(), torch.ones(1, 2, 4), torch.ones(1, 2)
    kept.put(x, router, logits)
    assert len(copy.deepcopy(kept)) == 0
    assert kept.take(x.clone(), router) is None and kept.take(x, router) is logits
    assert kept.take(x, router) is None
    kept.put(x, router, logits)
    assert len(kept) == 1
    del x
    assert len(kept) == 0


def test_a_graph_of_a_model_holds_the_handing_over(tiny, model, used, everywhere, monkeypatch, op_recorder):
    recorder = op_recorder()
    monkeypatch.setattr(model_graphs, "CudaRecorder", lambda: recorder)
    inputs = tiny.inputs(model)
    other = inputs | {"hidden_states": torch.randn_like(inputs["hidden_states"])}
    alone = [expected(tiny, model, call) for call in (inputs, other)]
    used.clear()
    with cuda_graphs(model):
        assert all(
            torch.equal(tiny.run(model, call), out) for call, out in zip((inputs, other), alone, strict=True)
        )
        assert used == 2 * CHAIN and recorder.recorded == 1
        for block in routed_blocks(model):
            block.diffratio.router_weight.data.neg_()
        assert torch.equal(tiny.run(model, inputs), expected(tiny, copy.deepcopy(model), inputs))
