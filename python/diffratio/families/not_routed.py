"""Blocks of diffusers that are not routed, and why."""

NOT_ROUTED = {
    # A token needs its neighbours.
    "SanaTransformerBlock": "its MLP is a 3x3 convolution on the grid: a token needs its neighbours",
    "SanaVideoTransformerBlock": "its MLP is a convolution on the grid and in time",
    "SanaVideoMSCamCtrlBlock": "its attention and its MLP have convolutions on the grid and in time",
    "Kandinsky6SRTransformerBlock": "its attention is between whole windows of the grid",
    # Two streams that need each other whole.
    "Kandinsky6FusedTransformerDecoderBlock": "its sound attends to every token of the video",
    # Language models.
    "OmniGenBlock": "no timestep modulates it, and its text may not see the image (a mask of all pairs)",
    "Cosmos3VLTextMoTDecoderLayer": "no timestep modulates it, and its sequences are packed without samples",
    # Sound.
    "AceStepTransformerBlock": "it makes sound, and attends to a window of neighbours in time",
    "AudioDiTBlock": "it makes sound, and positions turn its attention to the text",
    "DecoderLayer": "it makes sound, and its attention has a mask of all pairs",
    "MiniMaxMusic3DepthDecoderBlock": "it makes sound, one token after the other",
    "MiniMaxMusic3TransformerBlock": "it makes sound, and no timestep modulates it",
    "StableAudioDiTBlock": "it makes sound, and no timestep modulates it",
    "StableAudio3DiTBlock": "it makes sound, and adds a condition of each token between attention and MLP",
    # Others.
    "BasicTransformerBlockDreamLite": "it is one of a UNet: no timestep modulates it",
    "RFD4ProteinaTrunkLayer": "its tokens are residues of a protein, and attention has a bias for every pair",
    # What a spec would need.
    "AnyFlowTransformerBlock": "not yet: frames see earlier chunks alone (masks of blocks, a cache of keys)",
    "WanAnimate2TransformerBlock": "not yet: it fills and reads a cache of keys of the reference",
    "SanaWMLTX2RefinerTransformerBlock": "not yet: it fills and reads a cache of keys of earlier chunks",
}
"""Class of the block -> why."""


def why_not(model) -> str:
    """Of a model without a block that is routed: its blocks that are known not to be, as a sentence."""
    named = {type(module).__name__: type(module).__module__ for module in model.modules()}
    reasons = (
        f"{name}: {NOT_ROUTED[name]}"
        for name, package in named.items()
        if name in NOT_ROUTED and package.startswith("diffusers.")
    )
    return "; ".join(reasons)
