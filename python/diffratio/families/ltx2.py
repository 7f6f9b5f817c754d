"""LTX-2, 2.3: LTX's blocks for video, which is routed, and for audio, which is not. Between attention and MLP
each attends to its text and to the other one: the audio to those tokens of the video that are kept."""

import inspect
from collections import namedtuple
from dataclasses import dataclass, replace

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2Attention,
    LTX2AudioVideoAttnProcessor,
    LTX2PerturbedAttnProcessor,
    LTX2VideoTransformerBlock,
)
from torch import Tensor, nn

from diffratio_kernels.blocks.joint import rotated
from diffratio_kernels.blocks.stream import Call, Exchange, Rope, Stream, fold
from diffratio_kernels.ops.adaln.op import run_adaln
from diffratio_kernels.ops.attention.op import run_attention
from diffratio_kernels.ops.gate_residual.op import run_gate_residual
from diffratio_kernels.ops.route.reference import equal_cu_seqlens
from diffratio_kernels.types import PackedRows, Run, Seqlens

from .attention_modules import by_count
from .ltx import LTXSpec, across_heads, modulation_of
from .modules import image_and_text, per_token, told
from .registry import register_block_spec

_signature = inspect.signature(LTX2VideoTransformerBlock.forward)
_Given = namedtuple("_Given", list(_signature.parameters)[1:])
_MASKS = "self_attention_mask", "a2v_cross_attention_mask", "v2a_cross_attention_mask"


class LTX2Spec(LTXSpec):
    processors = (LTX2AudioVideoAttnProcessor, LTX2PerturbedAttnProcessor)
    plain = dict.fromkeys(("norm1", "norm2", "norm3", "audio_to_video_norm"), RMSNorm) | dict.fromkeys(
        ("attn1", "audio_to_video_attn", "video_to_audio_attn"), LTX2Attention
    )

    def layout(self, model, given):
        """Whether guidance that leaves attention out does so for all samples."""
        return given.get("perturbation_mask") is None

    def bind(self, block, *args, **kwargs):
        bound = _signature.bind(block, *args, **kwargs)
        bound.apply_defaults()
        given = _Given(*bound.args[1:])
        parts = self.refuse(block, **{name: getattr(given, name) for name in _MASKS})
        temb = given.temb[..., : 6 * given.hidden_states.shape[2]]
        modulation, groups = modulation_of(block.scale_shift_table[:6], temb, block.norm1, block.norm3)
        image = Stream(
            given.hidden_states, modulation, self._attention(block, parts, given), parts.mlp(block.ff),
            block.norm1.eps, block.norm3.eps, norm="rms", groups=groups,
        )  # fmt: skip
        of_audio = _modulations(block.audio_scale_shift_table, given.temb_audio)
        meeting = _Meeting(block, given, of_audio, _audio_alone(block, given, of_audio))
        return Call(image, Exchange(meeting), output=image_and_text)

    def _attention(self, block, parts, given):
        attn = block.attn1
        if block.perturbed_attn and given.perturbation_mask is not None:
            if given.all_perturbed is not True and not told(block, self):
                raise ValueError("perturbation_mask: attention is left out of some samples alone")
            return lambda normed, rows: _finished(attn, attn.to_v(normed), normed)
        attention = parts.attention(attn, _rope(attn, given.video_rotary_emb), across_heads=True)
        if attn.to_gate_logits is not None:  # twice the sigmoid
            attention.gate = lambda normed: attn.to_gate_logits(normed).repeat_interleave(attn.head_dim, -1)
            attention.out = lambda attended: attn.to_out[1](attn.to_out[0](2 * attended))
        return attention


@dataclass(slots=True)
class _Meeting:
    """What the rows of the video take of text and audio, and the audio of them."""

    block: nn.Module
    given: _Given
    of_audio: tuple[Tensor, ...]
    """Its modulation, each [B, 1 or its tokens, E]."""
    audio: Tensor
    """[B, L, E]."""

    def __call__(self, run: Run, hidden: Tensor, rows: PackedRows) -> tuple[Tensor, Tensor]:
        hidden, audio = self._each_other(run, self._text(run, hidden, rows), rows)
        block, (shift, scale, gate) = self.block, self.of_audio[3:6]
        return hidden, audio + gate * block.audio_ff(block.audio_norm3(audio) * (1 + scale) + shift)

    def _text(self, run: Run, hidden: Tensor, rows: PackedRows) -> Tensor:
        block, given, gate = self.block, self.given, None
        shift = scale = torch.zeros_like(given.temb[:, :1, : hidden.shape[1]])
        if block.video_cross_attn_adaln:
            shift, scale, gate = _modulations(block.scale_shift_table, given.temb)[6:]
        query = _modulated(run, hidden, rows, block.norm2, shift, scale)
        text = _prompt(block, given.encoder_hidden_states, "prompt_scale_shift_table", given.temb_prompt)
        branch = by_count(block.attn2, query, rows, text, given.encoder_attention_mask)
        return _added(run, hidden, branch, gate, rows)

    def _each_other(self, run: Run, hidden: Tensor, rows: PackedRows) -> tuple[Tensor, Tensor]:
        """Each as the other one was before: rows of the video may be added to in place, so they come last."""
        block, given, audio = self.block, self.given, self.audio
        table = block.video_a2v_cross_attn_scale_shift_table
        *own, gate = _modulations(table, given.temb_ca_scale_shift, given.temb_ca_gate)
        table = block.audio_a2v_cross_attn_scale_shift_table
        *others, audio_gate = _modulations(table, given.temb_ca_audio_scale_shift, given.temb_ca_audio_gate)
        normed, audio_rows = block.video_to_audio_norm(audio), _all_rows(audio)

        def shown(scale: Tensor, shift: Tensor, audio_scale: Tensor, audio_shift: Tensor) -> tuple:
            """What `_attend` is given of the video and of the audio."""
            seen = _modulated(run, hidden, rows, block.audio_to_video_norm, shift, scale)
            heard = (normed * (1 + audio_scale) + audio_shift).flatten(0, 1)
            return (seen, rows, given.ca_video_rotary_emb), (heard, audio_rows, given.ca_audio_rotary_emb)

        if given.use_v2a_cross_attention:
            seen, asking = shown(*own[2:], *others[2:])
            branch = _attend(run, block.video_to_audio_attn, asking, seen)
            audio = audio + audio_gate * branch.view(audio.shape)
        if given.use_a2v_cross_attention:
            branch = _attend(run, block.audio_to_video_attn, *shown(*own[:2], *others[:2]))
            hidden = _added(run, hidden, branch, gate, rows)
        return hidden, audio


def _modulations(table: Tensor, *temb: Tensor) -> tuple[Tensor, ...]:
    """[P, D] and [B, 1 or N, P D] in one or more tensors -> each [B, 1 or N, D]."""
    return (table + torch.cat(temb, dim=-1).unflatten(-1, table.shape)).unbind(-2)


def _prompt(block: nn.Module, text: Tensor, table: str, temb: Tensor | None) -> Tensor:
    if not block.cross_attn_adaln:
        return text
    table = getattr(block, table)
    shift, scale = table.to(text) if temb is None else _modulations(table, temb)
    return text * (1 + scale) + shift


def _audio_alone(block: nn.Module, given: _Given, modulation: tuple[Tensor, ...]) -> Tensor:
    """The audio after its own attention and that to its text."""
    audio, (shift, scale, gate) = given.audio_hidden_states, modulation[:3]
    perturbed = ("perturbation_mask", "all_perturbed") if block.perturbed_attn else ()
    branch = block.audio_attn1(
        block.audio_norm1(audio) * (1 + scale) + shift, None, given.audio_self_attention_mask,
        given.audio_rotary_emb, **{name: getattr(given, name) for name in perturbed},
    )  # fmt: skip
    audio = audio + gate * branch
    normed, gate = block.audio_norm2(audio), 1
    if block.audio_cross_attn_adaln:
        shift, scale, gate = modulation[6:]
        normed = normed * (1 + scale) + shift
    text, temb = given.audio_encoder_hidden_states, given.temb_prompt_audio
    text = _prompt(block, text, "audio_prompt_scale_shift_table", temb)
    return audio + gate * block.audio_attn2(normed, text, given.audio_encoder_attention_mask)


def _all_rows(x: Tensor) -> PackedRows:
    """All of x [B, L, D]."""
    batch, tokens = x.shape[:2]
    index = torch.arange(batch * tokens, device=x.device)
    return PackedRows(index, tokens, [tokens], equal_cu_seqlens(batch, tokens, x.device))


def _modulated(
    run: Run, hidden: Tensor, rows: PackedRows, norm: RMSNorm, shift: Tensor, scale: Tensor
) -> Tensor:
    _, scale = fold(scale, norm.weight)
    both, groups = per_token(torch.stack([shift, scale], dim=2))  # of samples or of tokens
    return run_adaln(run, hidden, replace(rows, groups=groups), *both.unbind(1), norm.eps, "rms")


def _added(run: Run, hidden: Tensor, branch: Tensor, gate: Tensor | None, rows: PackedRows) -> Tensor:
    if gate is None:
        return run_gate_residual(run, hidden, branch, None, rows)
    gate, groups = per_token(gate[:, :, None])
    return run_gate_residual(run, hidden, branch, gate[:, 0], replace(rows, groups=groups))


def _attend(run: Run, attn: nn.Module, asking: tuple, asked: tuple) -> Tensor:
    """What rows x [T, D] take of rows y [S, E]; each with which rows they are, and tables of positions."""
    (x, rows, table), (y, others, table_y) = asking, asked
    query = _turned(attn, attn.norm_q(attn.to_q(x)), rows, _rope(attn, table))
    key = _turned(attn, attn.norm_k(attn.to_k(y)), others, _rope(attn, table_y))
    value = attn.to_v(y).unflatten(-1, (attn.heads, -1))
    seqlens = Seqlens(rows.cu_seqlens, others.cu_seqlens, max(rows.counts), max(others.counts))
    return _finished(attn, run_attention(run, run.others, query, key.to(value.dtype), value, seqlens), x)


def _finished(attn: nn.Module, attended: Tensor, inputs: Tensor) -> Tensor:
    """attended [T, H d] times the gate of each head, and the product behind."""
    if attn.to_gate_logits is not None:
        gates = 2 * attn.to_gate_logits(inputs).sigmoid()
        attended = (attended.unflatten(-1, (attn.heads, -1)) * gates[..., None]).flatten(-2)
    return attn.to_out[1](attn.to_out[0](attended))


def _rope(attn: nn.Module, tables: tuple[Tensor, Tensor] | None) -> Rope | None:
    """Of cos and sin [B, H, N, d/2], or [B, N, D] where `rope_type` is not "split"."""
    if tables is None:
        return None
    if attn.rope_type == "split":
        return Rope(*(table.transpose(1, 2) for table in tables), halves=True)
    return across_heads(tables, attn.heads)


def _turned(attn: nn.Module, x: Tensor, rows: PackedRows, rope: Rope | None) -> Tensor:
    """[T, H d] -> [T, H, d]."""
    if rope is None:
        return x.unflatten(-1, (attn.heads, -1))
    x = x.unflatten(-1, (rope.cos.shape[2], -1))  # the model may give it other heads than attention has
    return rotated(rope, x, rows).flatten(1).unflatten(-1, (attn.heads, -1))


register_block_spec(LTX2VideoTransformerBlock, LTX2Spec())
