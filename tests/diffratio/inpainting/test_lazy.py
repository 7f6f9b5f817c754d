"""LazyPixArt: PixArt on a hole's tokens, dense and routed."""

from functools import partial

import pytest
import torch
from torch import nn

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    cuda_graphs,
    learn_ratios,
    load_diffratio,
    record_routing,
    save_diffratio,
)
from diffratio.inpainting.hole import Hole
from diffratio.inpainting.lazy import ContextBlock, LazyPixArt
from diffratio.inpainting.masks import token_mask
from diffratio.routing.find import routed_blocks, routed_layers
from diffratio_kernels import kept_tokens


@pytest.fixture
def inputs(masks):
    """Keyword arguments of one call of three samples with ragged holes."""
    mask = torch.tensor([[0, 1, 1, 1, 0, 1], [1] * 6, [1, 1, 0, 0, 0, 0]])
    return {
        "hidden_states": torch.randn(3, 4, 16, 16),
        "encoder_hidden_states": torch.randn(3, 6, 24),
        "encoder_attention_mask": mask,
        "timestep": torch.tensor([850, 40, 500]),
        "masked": torch.randn(3, 5, 16, 16),
        "hole": Hole.of(token_mask(masks, 2)),
    }


def alone(inputs, row):
    """The same of one sample, whose hole needs no padding."""
    hole = inputs["hole"]
    one = {name: x[row : row + 1] for name, x in inputs.items() if name != "hole"}
    count = hole.counts[row]
    return one | {"hole": Hole(hole.places[row : row + 1, :count], [count], hole.tokens)}


def call(model, inputs):
    return model(**inputs, return_dict=False)[0]


def scored(model, **settings):
    """Routed, by scores that differ clearly."""
    apply_diffratio(model, DiffRatioConfig(**settings))
    for block in routed_blocks(model):
        torch.nn.init.normal_(block.diffratio.router_weight)
    return model


def test_a_hole_takes_and_puts_back(masks):
    tokens = torch.randn(3, 64, 8)
    marked = token_mask(masks, 2)
    hole = Hole.of(marked)
    assert hole.counts == [12, 64, 3] and hole.places.shape == (3, 64)
    rows = hole.take(tokens)
    assert torch.equal(rows[0, :12], tokens[0][marked[0]])
    assert torch.equal(hole.put(rows), tokens * marked[..., None])
    with pytest.raises(ValueError, match="mask of sample 1 is empty"):
        Hole.of(marked & torch.tensor([[True], [False], [True]]))


@pytest.mark.parametrize("everything", [True, False])
def test_without_context_it_is_pixart_of_diffusers(pixart, tiny, everything):
    inputs = tiny.inputs(pixart)
    lazy = LazyPixArt.from_pixart(pixart)
    hole = Hole.of(torch.ones(2, 64, dtype=torch.bool)) if everything else None
    with torch.no_grad():
        dense = pixart(**inputs).sample
        made = lazy(**inputs, hole=hole, masked=torch.randn(2, 5, 16, 16)).sample
    assert torch.allclose(made, dense, rtol=0, atol=1e-6)


@pytest.mark.parametrize("compression", [None, 0.3])
def test_ragged_holes_equal_each_sample_alone(lazy, inputs, compression):
    if compression is not None:
        scored(lazy, compression=compression)
    with torch.no_grad():
        whole = call(lazy, inputs)
        for row in range(3):
            one = call(lazy, alone(inputs, row))
            assert torch.allclose(whole[row : row + 1], one, rtol=1e-5, atol=2e-6)
    outside = ~inputs["hole"].put(torch.ones(3, 64, 1)).bool().view(3, 1, 8, 8).repeat_interleave(2, 2)
    assert whole[outside.repeat_interleave(2, 3).expand_as(whole)].abs().max() == 0


def test_the_encoder_is_a_plain_transformer_at_the_decoder_s_places(tiny):
    block, gelu = ContextBlock(32, 2), partial(nn.functional.gelu, approximate="tanh")
    plain = nn.TransformerEncoderLayer(32, 2, 128, 0.0, gelu, batch_first=True, norm_first=True)
    own, theirs = block.state_dict(), {}
    for kind in ("weight", "bias"):
        joined = [own[f"attention.to_{name}.{kind}"] for name in "qkv"]
        theirs[f"self_attn.in_proj_{kind}"] = torch.cat(joined)
        theirs[f"self_attn.out_proj.{kind}"] = own[f"attention.to_out.0.{kind}"]
        theirs[f"linear1.{kind}"] = own[f"mlp.net.0.proj.{kind}"]
        theirs[f"linear2.{kind}"] = own[f"mlp.net.2.{kind}"]
        theirs |= {f"norm{n}.{kind}": own[f"norm{n}.{kind}"] for n in (1, 2)}
    plain.load_state_dict(theirs)
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(block(x), plain(x))
    lazy = LazyPixArt.from_pixart(tiny.pixart(interpolation_scale=2), encoder_layers=1)
    assert torch.equal(lazy.context_embed.pos_embed, lazy.pos_embed.pos_embed)


def test_a_context_that_was_computed_before_is_the_same(lazy, inputs):
    with torch.no_grad():
        context = lazy.encode(inputs["masked"], inputs["hole"])
        whole = call(lazy, inputs)
        again = call(lazy, inputs | {"masked": None, "context": context})
    assert torch.equal(whole, again)
    other = inputs | {"masked": inputs["masked"] + 1}
    assert not torch.allclose(call(lazy, other), whole, atol=1e-3)
    with pytest.raises(ValueError, match="context must be given, or masked"):
        call(lazy, inputs | {"masked": None})


def test_kept_tokens_are_a_part_of_each_hole(lazy, inputs):
    scored(lazy, compression=0.3, num_regions=10)
    assert len(routed_layers(lazy)) == 3  # none of the encoder
    with torch.no_grad(), record_routing(lazy) as log:
        call(lazy, inputs)
    wanted = [kept_tokens(7, n) for n in (12, 64, 3)]
    assert len(log) == 3 and all(entry.kept().sum(1).tolist() == wanted for entry in log)
    overrides = {layer: [0.7] * 5 + [0.0] * 5 for layer in range(3)}
    apply_diffratio(lazy, DiffRatioConfig(0.0, num_regions=10, overrides=overrides))
    with torch.no_grad(), record_routing(lazy) as log:
        call(lazy, inputs)
    assert log[0].kept().sum(1).tolist() == [12, kept_tokens(3, 64), 3]


def test_two_bins_equal_each_sample_alone_and_reach_the_encoder(lazy, inputs):
    scored(lazy, compression=0.0, num_regions=10)
    table = learn_ratios(lazy, start=0.65)
    lazy.train()
    whole = call(lazy, inputs)
    whole.square().sum().backward()
    encoder = [p.grad.abs().max() for name, p in lazy.named_parameters() if name.startswith("context_")]
    assert min(encoder) > 0 and (table.ratios.grad != 0).sum() == 9  # 3 layers, 3 of 10 regions
    for row in range(3):
        one = call(lazy, alone(inputs, row))
        assert torch.allclose(whole[row : row + 1], one, rtol=1e-5, atol=5e-6)


def test_gradient_checkpointing_changes_nothing(lazy, inputs):
    scored(lazy, compression=0.0, num_regions=10)
    learn_ratios(lazy, start=0.75)
    lazy.train()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            lazy.enable_gradient_checkpointing()
        lazy.zero_grad()
        call(lazy, inputs).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in lazy.named_parameters()})
    assert all(torch.allclose(one, found[1][name], atol=1e-6) for name, one in found[0].items())


def test_cuda_graphs_read_the_places_anew(lazy, inputs, masks, monkeypatch, op_recorder):
    """One graph for all holes of the same sizes."""
    op_recorder().install(monkeypatch)
    scored(lazy, compression=0.3)
    inputs |= {"encoder_attention_mask": None}
    moved = inputs | {"hole": Hole.of(token_mask(masks.flip(2, 3), 2))}
    fewer = {name: x if name == "hole" else x[:2] for name, x in inputs.items() if x is not None}
    fewer |= {"hole": Hole.of(token_mask(masks[:2], 2))}
    with torch.no_grad():
        eager = [call(lazy, given) for given in (inputs, moved, fewer)]
        with cuda_graphs(lazy) as graphs:
            assert all(
                torch.equal(call(lazy, given), wanted)
                for given, wanted in zip((inputs, moved, fewer), eager, strict=True)
            )
            assert len(graphs) == 2


def test_it_is_saved_and_loaded_with_its_routers(lazy, inputs, tmp_path):
    lazy.save_pretrained(tmp_path)
    scored(lazy, compression=0.3)
    save_diffratio(lazy, tmp_path)
    again = load_diffratio(LazyPixArt.from_pretrained(tmp_path), tmp_path).eval()
    assert again.config.encoder_layers == 2 and again.config.num_layers == 3
    with torch.no_grad():
        assert torch.equal(call(again, inputs), call(lazy, inputs))


def test_what_is_no_plain_pixart_is_refused(pixart, lazy, tiny):
    with pytest.raises(ValueError, match="must be a PixArtTransformer2DModel, got LazyPixArt"):
        LazyPixArt.from_pixart(lazy)
    with pytest.raises(ValueError, match="diffratio.router_weight, which PixArt has not"):
        LazyPixArt.from_pixart(tiny.route(pixart))
