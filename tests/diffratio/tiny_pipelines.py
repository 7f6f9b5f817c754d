"""Whole pipelines with random weights of a few channels, saved as diffusers saves them."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

COLOURS, FORMS = ("red", "green", "blue"), ("circle", "box")
WORDS = ["<pad>", "</s>", "<unk>", "a", "user", "assistant", *COLOURS, *FORMS]
WIDTH, LENGTH = 16, 8
"""Of the text."""
SIDE, FACTOR = 32, 4
"""Of the images in pixels, and how much smaller latents are."""


def tokenizer(length: int = LENGTH):
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )
    found.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} assistant{% endfor %}"
    return found


def clip(kind=CLIPTextModel, **options):
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, eos_token_id=1, pad_token_id=0, **options,
    )  # fmt: skip
    return kind(config)


def t5(kind=T5EncoderModel, config=T5Config, width=WIDTH):
    return kind(config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def vae(**options):
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    return AutoencoderKL(
        **kinds, block_out_channels=[4] * 3, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        scaling_factor=0.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False, **options,
    )  # fmt: skip


def video_vae(kind, **options):
    return kind(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[0.5, 2.0, 1.0, 1.5], **options,
    )  # fmt: skip


def flux(**options):
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 6, 6),
        **{"guidance_embeds": True} | options,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae(), clip(), tokenizer(), t5(), tokenizer(), transformer)


def sd3():
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // FACTOR, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH, out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    first, second = (clip(CLIPTextModelWithProjection, projection_dim=WIDTH) for _ in range(2))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    third = t5(width=2 * WIDTH)
    return StableDiffusion3Pipeline(
        transformer, scheduler, vae(), first, tokenizer(), second, tokenizer(), third, tokenizer()
    )


def qwen_image():
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    text = {
        "vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }  # fmt: skip
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    return QwenImagePipeline(scheduler, video_vae(AutoencoderKLQwenImage), encoder, tokenizer(), transformer)


def z_image():
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
    )  # fmt: skip
    encoder = Qwen3Model(Qwen3Config(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    ))  # fmt: skip
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0), vae(), encoder, tokenizer(), transformer
    )


def wan(**options):
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=WIDTH,
        freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip
    encoder, video = (
        t5(UMT5EncoderModel, UMT5Config),
        video_vae(AutoencoderKLWan, scale_factor_spatial=FACTOR),
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return WanPipeline(tokenizer(), encoder, video, scheduler, transformer, **options)


def large_vae():
    """One that makes latents 8 times smaller, as those of PixArt and DiT."""
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return AutoencoderKL(
        **kinds, block_out_channels=[4] * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        scaling_factor=0.5, mid_block_add_attention=False,
    )  # fmt: skip


def pixart(kind=PixArtAlphaPipeline, **options):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "norm_num_groups": 1}
    transformer = PixArtTransformer2DModel(
        **sizes, in_channels=4, out_channels=8, sample_size=8, cross_attention_dim=32,
        caption_channels=WIDTH, **options,
    )  # fmt: skip
    return kind(tokenizer(), t5(), large_vae(), transformer, DPMSolverMultistepScheduler())


def pixart_sigma():
    return pixart(PixArtSigmaPipeline)


def dit():
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, in_channels=4, out_channels=8,
        sample_size=8, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return DiTPipeline(transformer, large_vae(), DDIMScheduler())


PIPELINES = {"flux": flux, "sd3": sd3, "qwen_image": qwen_image, "z_image": z_image, "wan": wan}
PIPELINES |= {"pixart": pixart, "pixart_sigma": pixart_sigma, "dit": dit}


def save(name: str, folder: Path, **options) -> Path:
    """Make a pipeline whose layers all do something, and write it to `folder`."""
    torch.manual_seed(0)
    pipe = PIPELINES[name](**options)
    with torch.no_grad():  # some layers start at zero, behind which nothing can be seen
        for parameter in pipe.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    pipe.save_pretrained(folder)
    return folder


def draw_photos(folder: Path, count: int = 20) -> Path:
    """Drawings with captions, every tenth of which is held out."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        colour, form = COLOURS[i % 3], FORMS[i % 2]
        image = Image.new("RGB", (SIDE, SIDE), "gray")
        draw = ImageDraw.Draw(image)
        (draw.ellipse if form == "circle" else draw.rectangle)((4 + i % 9, 6, 20 + i % 9, 22), fill=colour)
        image.save(folder / f"{i:02}.png")
        rows.append(json.dumps({"file_name": f"{i:02}.png", "text": f"a {colour} {form}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder
