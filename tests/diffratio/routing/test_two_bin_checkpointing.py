"""Gradient checkpointing of learned ratios: selection and bins of the forward pass, whatever moved since."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diffratio import learn_ratios
from diffratio.routing import forward
from diffratio_kernels.blocks.ratio_table import RatioTable
from diffratio_kernels.blocks.recompute import recompute_in_backward


@pytest.fixture
def decisions(monkeypatch):
    """Selections made in forward passes and in backward passes, and all packed rows that were run."""
    made, select = {"forward": 0, "backward": 0, "rows": []}, forward.run_route

    def counting(run, x, router, keep, index=None, keep_small=None):
        if index is None:
            made["forward" if torch._C._current_graph_task_id() == -1 else "backward"] += 1
        rows, logits = select(run, x, router, keep, index, keep_small)
        made["rows"].append((rows.index.tolist(), keep, keep_small))
        return rows, logits

    monkeypatch.setattr(forward, "run_route", counting)
    return made


def call_modules(model):
    """From now on the blocks' attentions and MLPs are called as modules: hooks may do anything."""
    for block in model.transformer_blocks:
        for module in (block.attn1, block.attn2, block.ff):
            if module is not None:
                module.register_forward_hook(lambda *_: None)


def reentrant(block, *args):
    return checkpoint(block, *args, use_reentrant=True)


def gradients(tiny, model, calls, backward):
    model.zero_grad()
    torch.manual_seed(1)  # a DiT drops labels in training
    losses = [tiny.run(model, call, grad=True).square().mean() for call in calls]
    backward(losses)
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_turn(losses):
    for loss in losses:
        loss.backward()


ORDERS = {"in turn": in_turn, "last first": lambda losses: in_turn(losses[::-1])}


@pytest.mark.parametrize("way", ["weights", "modules"])
@pytest.mark.parametrize("how", [None, reentrant], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_forwards_before_a_backward_keep_their_own_decisions(tiny, model, decisions, way, order, how):
    """In other regions, and in batches that mix them: the gradients of a run without checkpointing, in bits
    but for the order in which re-entrant checkpointing sums up those of shared parameters."""
    table = learn_ratios(tiny.route(model.train(), num_regions=2), start=0.9)
    if way == "modules":
        call_modules(model)
    with torch.no_grad():
        table.ratios.copy_(torch.tensor([[0.93, 0.55], [1.0, 0.3], [0.4, 0.37]]))
    calls = [tiny.inputs(model, 900), tiny.inputs(model, 100), tiny.inputs(model, [900, 100])]
    plain = gradients(tiny, model, calls, order)
    selected = {"forward": 3 * tiny.layers, "backward": 0}
    assert {name: decisions[name] for name in selected} == selected
    model.enable_gradient_checkpointing(*([] if how is None else [how]))
    checkpointed = gradients(tiny, model, calls, order)
    assert decisions["forward"] == 6 * tiny.layers and decisions["backward"] == 0
    assert plain.keys() == checkpointed.keys() and "diffratio_ratios.ratios" in plain
    for name in plain:
        off = (plain[name] - checkpointed[name]).abs().max()
        # The gradient of a bias of keys is 0 but for rounding, which is some 1e-10 here.
        assert off <= (1e-6 * plain[name].abs().max() + 1e-9 if how else 0), name


@pytest.mark.parametrize("batches", [100, 20])
def test_decisions_are_identical_in_batches_full_of_ties(tiny, decisions, batches):
    """Integer scores, both bins' edges inside of ties. Before the backward the regions move, and in every
    third batch the table (the weights follow it, the bins must not). By weights in the hundred, through
    modules in the twenty; re-entrant in every other one."""
    model = tiny.route(tiny.pixart(num_layers=1).train(), num_regions=2)
    if batches == 20:
        call_modules(model)
    table, block, shared = learn_ratios(model), model.transformer_blocks[0], model._diffratio_model
    generator = torch.Generator().manual_seed(5)
    weight = torch.zeros(32).index_fill_(0, torch.tensor([3, 17]), 1.0)
    block.diffratio.router_weight.data.copy_(weight)
    text, time = torch.randn(2, 6, 32, generator=generator), torch.randn(2, 192, generator=generator)
    ties = 0
    for batch in range(batches):
        x = torch.randint(-1, 2, (2, 24, 32), generator=generator).float()
        ratios = 0.3 + 0.7 * torch.rand(1, 2, generator=generator)
        regions = torch.randint(0, 2, (2,), generator=generator).tolist()
        grads, rows = [], []
        for checkpointed in (False, True):
            shared.regions = regions
            with torch.no_grad():
                table.ratios.copy_(ratios)
            leaf = x.clone().requires_grad_()
            run = block
            if checkpointed:
                run = partial(checkpoint, block, use_reentrant=batch % 2 == 0)
            decisions["rows"].clear()
            out = run(leaf, None, text, None, time)
            rows.append(list(decisions["rows"]))
            shared.regions = [0]
            if batch % 3 == 0:
                with torch.no_grad():
                    table.ratios.copy_(1.3 - ratios)
            model.zero_grad()
            (out * x).sum().backward()
            assert decisions["rows"] == rows[-1] * (1 + checkpointed)
            tensors = [leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
            grads.append([gradient.clone() for gradient in tensors])
        assert rows[0] == rows[1] and len(grads[0]) == len(grads[1])
        if batch % 3:
            assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        scores = (x @ weight).sort(dim=1, descending=True).values
        for keep in rows[0][0][1:]:
            ties += sum(int(scores[b, k - 1] == scores[b, k]) for b, k in enumerate(keep) if k < 24)
    assert ties > 3 * batches
    assert decisions["forward"] == 2 * batches and decisions["backward"] == 0


def test_checkpointing_alone_decides_what_is_kept():
    """Not a second rule inside of it, which would keep what checkpointing drops; outside of it it applies."""
    calls = []

    def double(value):
        return value * value

    def make():
        calls.append(1)
        return torch.full((3,), 2.0)

    leaf = torch.full((3,), 2.0, requires_grad=True)
    checkpoint(
        lambda x: recompute_in_backward(double, x + 0, make), leaf, use_reentrant=False
    ).sum().backward()
    assert calls == [] and leaf.grad.tolist() == [4.0] * 3
    recompute_in_backward(double, leaf + 0, make).sum().backward()
    assert calls == [1, 1] and leaf.grad.tolist() == [8.0] * 3


def test_bins_are_read_once_and_forgotten_with_the_tensors_they_belong_to(tiny, model, monkeypatch):
    learn_ratios(tiny.route(model.train()), start=0.55)
    model.enable_gradient_checkpointing()
    copies, decide = [], RatioTable._decide
    monkeypatch.setattr(RatioTable, "_decide", lambda self, r: copies.append(1) or decide(self, r))
    for _ in range(3):
        tiny.run(model, tiny.inputs(model), grad=True).sum().backward()
    assert len(copies) == 1
    assert [len(b._diffratio.saved._by_memory) for b in model.transformer_blocks] == [0] * tiny.layers


def test_a_recomputation_without_a_decision_is_an_error_and_not_another_one(tiny):
    """Re-entrant checkpointing in eval mode ran the nearest bin: gradients at two bins would be others."""
    model = tiny.dit(num_layers=2)
    learn_ratios(tiny.route(model), start=0.55)
    model.enable_gradient_checkpointing(reentrant)
    inputs = tiny.inputs(model)
    inputs["hidden_states"].requires_grad_()
    loss = tiny.run(model, inputs, grad=True).sum()
    with pytest.raises(RuntimeError, match="gradient checkpointing of learned ratios"):
        loss.backward()
