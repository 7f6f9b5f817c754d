"""Gradient checkpointing: the recomputation routes as the forward pass did, and gradients are bit-equal."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diffratio import record_routing
from diffratio.routing import forward


@pytest.fixture
def decisions(monkeypatch):
    """Counts the selections made: in forward passes and, apart, inside backward passes."""
    made, select = {"forward": 0, "backward": 0}, forward.run_route

    def counting(run, x, router, keep, index=None, keep_small=None):
        if index is None:
            made["forward" if torch._C._current_graph_task_id() == -1 else "backward"] += 1
        return select(run, x, router, keep, index, keep_small)

    monkeypatch.setattr(forward, "run_route", counting)
    return made


def gradients(tiny, model, calls, backward):
    """Gradients after several forward passes and one backward pass per loss."""
    model.zero_grad()
    losses = [tiny.run(model, call, grad=True).square().mean() for call in calls]
    backward(losses)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def in_turn(losses):
    for loss in losses:
        loss.backward()


ORDERS = {
    "in turn": in_turn,
    "last first": lambda losses: in_turn(losses[::-1]),
    "summed": lambda losses: sum(losses).backward(),
}


def equal_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_decisions_are_reused_and_never_made_again(tiny, model, decisions):
    tiny.route(model)
    inputs = tiny.inputs(model)
    plain = gradients(tiny, model, [inputs], in_turn)
    assert decisions == {"forward": tiny.layers, "backward": 0}
    model.enable_gradient_checkpointing()
    checkpointed = gradients(tiny, model, [inputs], in_turn)
    assert decisions == {"forward": 2 * tiny.layers, "backward": 0}
    assert equal_bits(plain, checkpointed)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_two_forwards_before_one_backward_keep_their_own_decisions(tiny, model, decisions, order):
    """The second call is in another region: recomputing the first with its counts would be wrong."""
    tiny.route(model, num_regions=2, overrides={0: [0.2, 0.7], 1: [1.0, 0.1], 2: [0.3, 1.0]})
    calls = [tiny.inputs(model, 900), tiny.inputs(model, 100), tiny.inputs(model, [900, 100])]
    plain = gradients(tiny, model, calls, order)
    model.enable_gradient_checkpointing()
    assert equal_bits(plain, gradients(tiny, model, calls, order))
    assert decisions["backward"] == 0


def test_mixed_batches_of_different_sizes_before_one_backward_keep_their_own_counts(tiny, model):
    tiny.route(model, num_regions=2, overrides={0: [0.2, 0.7]})
    calls = [tiny.inputs(model, [900, 100]), tiny.inputs(model, [100, 900, 100], batch=3)]
    plain = gradients(tiny, model, calls, in_turn)
    model.enable_gradient_checkpointing()
    assert equal_bits(plain, gradients(tiny, model, calls, in_turn))


def test_gradients_are_bit_equal_in_a_hundred_batches_full_of_ties(tiny, decisions):
    model = tiny.route(tiny.pixart(num_layers=1), 0.6)
    block = model.transformer_blocks[0]
    generator = torch.Generator().manual_seed(5)
    # Integers times integers: five or so different scores among 24 tokens, the edge falls inside a tie.
    weight = torch.zeros(32).index_fill_(0, torch.tensor([3, 17]), 1.0)
    block.diffratio.router_weight.data.copy_(weight)
    text, time = torch.randn(2, 6, 32, generator=generator), torch.randn(2, 192, generator=generator)
    ties = 0
    for _ in range(100):
        x = torch.randint(-1, 2, (2, 24, 32), generator=generator).float()
        scores = (x @ weight).sort(dim=1, descending=True).values
        ties += int((scores[:, 9] == scores[:, 10]).sum())
        grads = []
        for checkpointed in (False, True):
            leaf = x.clone().requires_grad_()
            arguments = (leaf, None, text, None, time)
            out = checkpoint(block, *arguments, use_reentrant=False) if checkpointed else block(*arguments)
            block.zero_grad()
            (out * x).sum().backward()
            grads.append([leaf.grad, *(parameter.grad for parameter in block.parameters())])
            grads[-1] = [grad.clone() for grad in grads[-1] if grad is not None]
        assert len(grads[0]) == len(grads[1])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert ties > 150
    assert decisions == {"forward": 200, "backward": 0}


def test_a_recording_holds_each_selection_once_under_checkpointing(tiny, model):
    tiny.route(model)
    model.enable_gradient_checkpointing()
    with record_routing(model) as log:
        tiny.run(model, tiny.inputs(model), grad=True).sum().backward()
    assert [entry.layer for entry in log] == [0, 1, 2]


def test_autocast_does_not_part_a_recomputation_from_its_decision(tiny, model, decisions):
    """Under autocast the first block gets bfloat16 and works in fp32: still the same input."""
    tiny.route(model)
    model.enable_gradient_checkpointing()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiny.run(model, tiny.inputs(model), grad=True).square().mean()
    loss.backward()
    assert decisions == {"forward": tiny.layers, "backward": 0}


def test_reentrant_checkpointing_gives_the_same_gradients(tiny):
    """It runs the forward pass without gradients, so by mod_block: equal up to rounding, not in bits."""
    model = tiny.route(tiny.pixart())
    plain = gradients(tiny, model, [tiny.inputs(model)], in_turn)
    model.enable_gradient_checkpointing(lambda block, *args: checkpoint(block, *args, use_reentrant=True))
    reentrant = gradients(tiny, model, [tiny.inputs(model)], in_turn)
    for name, gradient in plain.items():
        assert (reentrant[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9, name


def test_decisions_are_forgotten_with_the_tensors_they_belong_to(tiny, model):
    tiny.route(model)
    model.enable_gradient_checkpointing()
    for _ in range(3):
        tiny.run(model, tiny.inputs(model), grad=True).sum().backward()
    assert [len(block._diffratio.saved._by_memory) for block in model.transformer_blocks] == [0] * tiny.layers


def test_a_new_forward_pass_of_the_same_tensor_decides_anew(tiny):
    """A saved decision is for recomputations only: by the next step the router has learned."""
    model = tiny.route(tiny.pixart(num_layers=1))
    block, x = model.transformer_blocks[0], torch.randn(2, 24, 32, requires_grad=True)
    arguments = (x, None, torch.randn(2, 6, 32), None, torch.randn(2, 192))
    with record_routing(model) as log:
        block(*arguments).sum().backward()
        block.diffratio.router_weight.data.neg_()
        block(*arguments).sum().backward()
    first, second = (entry.kept() for entry in log)
    assert torch.equal(second, ~first)  # 12 of 24: the best half is now the worst
