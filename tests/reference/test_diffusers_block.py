"""Keeping every token without a score is diffusers' own transformer block: PixArt's and DiT's."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

from diffratio_kernels import mod_block, reference
from diffratio_kernels.testing.cases import cast

HEADS, WIDTH, TEXT = 2, 32, 6
LENGTHS = [4, 6, 1]
SMALL = 3e-3  # standard deviation of x: its variance 1e-5 makes every eps visible


def weights(block):
    """What `mod_block` takes besides x, keep, modulation and text, from the block's own modules."""
    qkv = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    linears = {"out": block.attn1.to_out[0], "fc1": block.ff.net[0].proj, "fc2": block.ff.net[2]}
    return {
        "router_weight": torch.randn(WIDTH),
        "qkv_weight": torch.cat([linear.weight for linear in qkv]),
        "qkv_bias": torch.cat([linear.bias for linear in qkv]),
        "num_heads": HEADS,
        "rescale": "none",
        **{f"{name}_weight": linear.weight for name, linear in linears.items()},
        **{f"{name}_bias": linear.bias for name, linear in linears.items()},
    }


def pixart():
    """A PixArt block with ragged text: (diffusers' output, our arguments), in fp64."""
    block = BasicTransformerBlock(
        WIDTH,
        HEADS,
        WIDTH // HEADS,
        cross_attention_dim=20,
        activation_fn="gelu-approximate",
        attention_bias=True,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    ).double()
    x, time = SMALL * torch.randn(3, 9, WIDTH).double(), torch.randn(3, 6 * WIDTH).double()
    text = torch.randn(3, TEXT, 20).double()
    valid = torch.arange(TEXT) < torch.tensor(LENGTHS)[:, None]
    mask = (1 - valid.double())[:, None] * -10_000.0  # as in PixArtTransformer2DModel.forward
    expected = block(x, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=time)
    return expected, weights(block) | {
        "x": x,
        "modulation": block.scale_shift_table + time.view(3, 6, WIDTH),
        "context_kv": torch.stack([block.attn2.to_k(text), block.attn2.to_v(text)], dim=2),
        "context_lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        "cross_q_weight": block.attn2.to_q.weight,
        "cross_q_bias": block.attn2.to_q.bias,
        "cross_out_weight": block.attn2.to_out[0].weight,
        "cross_out_bias": block.attn2.to_out[0].bias,
    }


def dit():
    """A DiT block: no text, and the second layer norm has an eps of its own (1e-5)."""
    block = BasicTransformerBlock(
        WIDTH,
        HEADS,
        WIDTH // HEADS,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=10,
        attention_bias=True,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        norm_eps=1e-5,
    )
    block = block.double().eval()  # no dropped labels
    x, time, labels = SMALL * torch.randn(3, 9, WIDTH).double(), torch.tensor([0, 500, 999]), torch.arange(3)
    expected = block(x, timestep=time, class_labels=labels)
    embedded = block.norm1.emb(time, labels, hidden_dtype=torch.float64)
    modulation = block.norm1.linear(torch.nn.functional.silu(embedded)).view(3, 6, WIDTH)
    return expected, weights(block) | {"x": x, "modulation": modulation, "mlp_eps": 1e-5}


@pytest.fixture(params=[pixart, dit])
def family(request):
    with torch.no_grad():
        expected, arguments = request.param()
    return expected, cast(arguments, torch.float64)


def test_reference_is_the_block_of_diffusers(family):
    expected, arguments = family
    actual = reference.mod_block(**arguments, keep=[9, 9, 9])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_operator_is_the_block_of_diffusers_in_fp32(family):
    expected, arguments = family
    actual = mod_block(**cast(arguments, torch.float32), keep=9)
    # Outputs up to 3 in fp32, sums of up to 128 terms: eps * 3 * sqrt(128) = 4e-6.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_score_and_eps_matter_here(family):
    """The control: another eps, or the score, would exceed the first comparison's 1e-12 a thousand times."""
    expected, arguments = family
    for change in ({"eps": 1e-5}, {"mlp_eps": 3e-6}, {"rescale": "mlp"}, {"rescale": "output"}):
        other = reference.mod_block(**arguments | change, keep=[9, 9, 9])
        assert (other - expected).abs().max() > 1e-9, change
