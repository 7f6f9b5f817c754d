"""Baselines on families beside PixArt and DiT: where they are defined, and where the error says why not."""

import pytest
import torch

from diffratio import disable_diffratio
from diffratio.baselines import apply_baseline, apply_tome, remove_baseline
from diffratio.baselines.tome import Matching

from .cases import cogview, cosmos, flux, lumina2, lumina_next, sd3, wan, z_image


def made(make):
    """A tiny model of a family and its inputs."""
    torch.manual_seed(0)
    model, inputs = make()
    return model.eval(), inputs | {"return_dict": False}


def call(model, inputs):
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (sd3.sd35_model, "tome:all:0.5"),
        (cogview.cogview3plus_model, "tome:attn:0.3"),
        (cogview.cogview4_model, "tome:mlp:0.3"),
        (wan.wan_model, "atedm:0.3"),
        (cosmos.cosmos_model, "atedm:0.3"),
    ],
)
def test_where_a_family_is_known_to_be_merged_or_pruned(make, name):
    model, inputs = made(make)
    dense = call(model, inputs)
    out = call(apply_baseline(model, name), inputs)
    assert out.isfinite().all() and not torch.allclose(out, dense, atol=1e-4)
    assert torch.equal(call(remove_baseline(model), inputs), dense)


NOT_DEFINED = [
    (cogview.cogview4_model, "tome:attn:0.3", "knows tokens by their places (rope)"),
    (lumina_next.lumina_next_model, "tome:attn:0.3", "a module that may know tokens by their places"),
    (flux.flux_model, "tome:mlp:0.3", "no image [B, C, height, width]"),
    (wan.wan_model, "tome:mlp:0.3", "no image [B, C, height, width]"),
    (lumina2.lumina2_model, "tome:mlp:0.3", "others that must be kept (text, references, padding)"),
    (sd3.sd35_model, "atedm:0.3", "attend to those of a text too"),
    (z_image.z_image_model, "atedm:0.3", "others that must be kept"),
]


@pytest.mark.parametrize(("make", "name", "reason"), NOT_DEFINED)
def test_where_it_is_not_defined_the_error_says_why(make, name, reason):
    model, inputs = made(make)
    with pytest.raises(ValueError, match=f"^{name} does not apply to ") as error:
        call(apply_baseline(model, name), inputs)
    assert reason in str(error.value)


@pytest.mark.parametrize("number", [0, 1])
def test_a_joint_block_merges_its_image_and_not_its_text(number):
    """SD3.5's blocks by their own modules, attention among merged image rows and all of the text; the first
    one's image attends to itself, too."""
    model, inputs = made(sd3.sd35_model)
    apply_tome(model, 0.5, seed=3)
    calls = []
    block = model.transformer_blocks[number]
    block.register_forward_hook(lambda _, args, kw, out: calls.append((kw, out)), with_kwargs=True)
    call(model, inputs)
    [(given, (text_out, image_out))] = calls
    draws = torch.Generator().manual_seed(3)
    choice = [torch.randint(4, (3, 3), generator=draws) for _ in range(2)][number]
    x, text, temb = (given[name] for name in ("hidden_states", "encoder_hidden_states", "temb"))
    matching = Matching(x, (6, 6), 18, choice)
    with torch.no_grad():
        normed, gate, shift, scale, gate_mlp, *second = block.norm1(x, emb=temb)
        of_text, text_gate, text_shift, text_scale, text_gate_mlp = block.norm1_context(text, emb=temb)
        attended, of_text = block.attn(matching.merge(normed), of_text)
        x = x + gate[:, None] * matching.unmerge(attended)
        if second:
            x = x + second[1][:, None] * matching.unmerge(block.attn2(matching.merge(second[0])))
        branch = block.ff(block.norm2(x) * (1 + scale[:, None]) + shift[:, None])
        text = text + text_gate[:, None] * of_text
        of_text = block.ff_context(
            block.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
        )
    torch.testing.assert_close(image_out, x + gate_mlp[:, None] * branch, atol=1e-5, rtol=1e-5)
    expected = text + text_gate_mlp[:, None] * of_text
    torch.testing.assert_close(text_out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [wan.wan_model, cosmos.cosmos_model])
def test_rows_that_stay_are_those_of_the_block(make):
    """Attention by its maps, with norms and rope, is the block's own: what is kept comes out as it would."""
    model, inputs = made(make)
    apply_baseline(model, "atedm:0.3:residual")
    block, found = next(module for module in model.modules() if "_diffratio" in vars(module)), []
    block.register_forward_hook(lambda _, args, out: found.append(out))
    call(model, inputs)
    call(disable_diffratio(model), inputs)
    pruned, dense = found
    same = torch.isclose(dense, pruned, atol=1e-5, rtol=1e-5).all(-1).sum(1)
    tokens = dense.shape[1]
    assert same.tolist() == [tokens * 7 // 10] * len(dense)
