"""JoyImage-Edit: with positions of the text, and with a reference image. JoyImage-Edit-Plus: images of two
sizes."""

import torch
from diffusers import JoyImageEditPlusTransformer3DModel, JoyImageEditTransformer3DModel
from diffusers.models.transformers.transformer_joyimage import JoyImageTransformerBlock
from diffusers.models.transformers.transformer_joyimage_edit_plus import JoyImageEditPlusTransformerBlock

from .case import BATCH, HEADS, TEXT, WIDTH, Case, D, N, angles, awake, sample


def _case(references=0, of_text=False) -> Case:
    block = awake(JoyImageTransformerBlock(D, HEADS, WIDTH))
    total = N + references
    rope, of_text = angles(total), angles(TEXT, seed=1) if of_text else None
    inputs = {
        "hidden_states": torch.randn(BATCH, total, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, 6, D), "image_rotary_emb": (rope, of_text),
    }  # fmt: skip

    def alone(b, kept):
        rows = torch.cat([kept, torch.arange(N, total)])
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, rows]
        return one | {"image_rotary_emb": (tuple(table[rows] for table in rope), of_text)}

    told = {"hidden_states": torch.empty(BATCH, total // N, 4, 1, 8, 6)}
    return Case(block, inputs, alone, block.img_mlp, lambda out: out, told=told)


def joyimage():
    return _case()


def joyimage_mrope():
    return _case(of_text=True)


def joyimage_references():
    return _case(references=N)


def _model(**inputs):
    model = JoyImageEditTransformer3DModel(
        in_channels=4, hidden_size=D, num_attention_heads=HEADS, text_dim=8, num_layers=2,
        rope_dim_list=[4, 4, 8],
    )  # fmt: skip
    return model, inputs | {
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "timestep": torch.tensor([300.0, 700.0]),
    }  # fmt: skip


def joyimage_model():
    return _model(hidden_states=torch.randn(BATCH, 4, 1, 12, 12))


def joyimage_references_model():
    return _model(hidden_states=torch.randn(BATCH, 2, 4, 1, 8, 8))


SHAPES = [[(1, 3, 4), (1, 2, 2)], [(1, 3, 3), (1, 1, 2)]]
"""Of each sample the image that is made and a reference."""
_TEXT = torch.arange(TEXT) < torch.tensor([[TEXT], [3]])


def _edit_plus(masked) -> Case:
    block = awake(JoyImageEditPlusTransformerBlock(D, HEADS, WIDTH))
    total, made, used = 16, (12, 9), (16, 11)
    rope = tuple(table.view(BATCH, total, WIDTH) for table in angles(BATCH * total))
    valid = torch.arange(total) < torch.tensor(used)[:, None]
    inputs = {
        "hidden_states": torch.randn(BATCH, total, D), "encoder_hidden_states": torch.randn(BATCH, TEXT, D),
        "temb": torch.randn(BATCH, 6, D), "image_rotary_emb": rope,
    }  # fmt: skip
    if masked:
        inputs["attention_mask"] = torch.cat([valid, _TEXT], dim=1)[:, None, None]

    def alone(b, kept):
        rows = torch.cat([kept, torch.arange(made[b], total)])
        one = {name: sample(value, b) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        one["hidden_states"] = one["hidden_states"][:, rows]
        if masked:
            keys = torch.cat([rows, torch.arange(total, total + TEXT)])
            one["attention_mask"] = one["attention_mask"][..., keys]
        return one | {"image_rotary_emb": tuple(table[b : b + 1, rows] for table in rope)}

    case = Case(block, inputs, alone, block.img_mlp, lambda out: out, told={"shape_list": SHAPES})
    case.image = lambda b: slice(0, made[b])
    if masked:
        case.valid, case.text_valid = valid, _TEXT
    return case


def joyimage_edit_plus():
    return _edit_plus(masked=True)


def joyimage_edit_plus_without_mask():
    return _edit_plus(masked=False)


def joyimage_edit_plus_model():
    model = JoyImageEditPlusTransformer3DModel(
        in_channels=4, hidden_size=D, num_attention_heads=HEADS, text_dim=8, num_layers=2,
        rope_dim_list=[4, 4, 8],
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 16, 4, 1, 2, 2), "shape_list": SHAPES,
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 8), "timestep": torch.tensor([300.0, 700.0]),
    }  # fmt: skip


BLOCKS = (
    joyimage,
    joyimage_mrope,
    joyimage_references,
    joyimage_edit_plus,
    joyimage_edit_plus_without_mask,
)
MODELS = (joyimage_model, joyimage_references_model, joyimage_edit_plus_model)
