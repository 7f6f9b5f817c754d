"""Bugs around repainting: the pipeline, the command, training and judging."""

from .mutant import Mutant

SOURCE = "python/diffratio/inpainting/"
PIPELINE = f"{SOURCE}pipeline.py"
TRAIN, JUDGED = "python/diffratio/train/inpainting.py", "python/diffratio/evaluation/inpainting.py"
OF_PIPELINE = "tests/diffratio/inpainting/test_pipeline.py -k 'not 200_masks and not saved'"
OF_TRAINING = "tests/diffratio/train/test_inpainting.py -k"
OF_JUDGING = "tests/diffratio/train/test_inpainting.py -k 'judges or twins_match'"

INPAINTING_CALLS = [
    Mutant(
        "latents-of-a-picture-unscaled", "factor forgotten", PIPELINE,
        {"clean = latents * self.vae.config.scaling_factor": "clean = latents"}, OF_PIPELINE,
    ),
    Mutant(
        "latents-are-decoded-unscaled", "factor forgotten", PIPELINE,
        {"made.to(self.vae.dtype) / self.vae.config.scaling_factor": "made.to(self.vae.dtype)"}, OF_PIPELINE,
    ),
    Mutant(
        "a-picture-is-encoded-in-0-to-1", "wrong range", PIPELINE,
        {"torch.float32), size) * 2 - 1": "torch.float32), size)"}, OF_PIPELINE,
    ),
    Mutant(
        "the-vae-s-seam-stays", "call forgotten", PIPELINE,
        {"made = poisson_blended(made, picture.to(made), mask.to(made.device)).clamp(0, 1)": "pass"},
        OF_PIPELINE,
    ),
    Mutant(
        "results-of-several-pictures-take-turns", "wrong order of samples", PIPELINE,
        {"return whole.repeat_interleave(self.copies, dim=0)":
         "return whole.repeat(self.copies, *[1] * (whole.dim() - 1))"}, OF_PIPELINE,
    ),
    Mutant(
        "latents-of-a-callback-are-dropped", "result forgotten", PIPELINE,
        {'changed.get("latents", latents)': "latents"}, OF_PIPELINE,
    ),
    Mutant(
        "a-negative-prompt-guides-towards", "swapped arguments", PIPELINE,
        {"text = Text(tokens, null, mask, null_mask)": "text = Text(null, tokens, null_mask, mask)"}, OF_PIPELINE,
    ),
    Mutant(
        "half-grey-is-not-white", "comparison", f"{SOURCE}pictures.py",
        {'"mask_image", 1).cpu() >= 0.5': '"mask_image", 1).cpu() > 0.5'}, OF_PIPELINE,
    ),
    Mutant(
        "a-mask-is-not-resized-with-its-picture", "call forgotten", PIPELINE,
        {"system.frame(pixels, resized_mask(mask, size), self.unit)": "system.frame(pixels, mask, self.unit)"},
        OF_PIPELINE,
    ),
    Mutant(
        "a-run-is-edited-by-another-sampler", "setting forgotten", "python/diffratio/evaluation/editor.py",
        {'(target.run or {}).get("sampling", {}).get("sampler", "dpm++")': '"dpm++"'}, OF_PIPELINE,
    ),
    Mutant(
        "an-epoch-s-holes-come-again", "wrong key of a random number", TRAIN,
        {"torch.tensor([number]), side": "torch.tensor([row]), side"}, f"{OF_TRAINING} hole",
    ),
    Mutant(
        "the-loss-outside-of-the-hole", "mask forgotten", TRAIN,
        {"**self.condition(batch)), edit.mean": "**self.condition(batch)), lambda x: x.flatten(1).mean(1)"},
        f"{OF_TRAINING} loss",
    ),
    Mutant(
        "the-error-of-a-hole-over-the-picture", "wrong denominator", JUDGED,
        {"/ inside.flatten(1).sum(1)": "/ inside[0].numel()"}, OF_JUDGING,
    ),
    Mutant(
        "every-hole-gets-the-same-noise", "wrong key of a random number", JUDGED,
        {"mixed_seed(settings.seed, row)": "mixed_seed(settings.seed, 0)"}, OF_JUDGING,
    ),
    Mutant(
        "hidden-pictures-are-shown", "control that controls nothing", JUDGED,
        {"if hidden else frame": "if not hidden else frame"}, OF_JUDGING,
    ),
    Mutant(
        "quarters-of-the-noise-backwards", "index", JUDGED,
        {"error[quarter == q]": "error[quarter == QUARTILES - 1 - q]"}, OF_JUDGING,
    ),
    Mutant(
        "flops-of-all-regions-for-one-step", "wrong denominator", JUDGED,
        {'            one["gflop"] /= regions\n': ""}, OF_JUDGING,
    ),
    Mutant(
        "a-repainter-s-reference-is-trained-on", "held-out data not held out", JUDGED,
        {"partial(images_of, judge.held_out, progress)": "partial(images_of, judge._seen, progress)"},
        OF_JUDGING,
    ),
    Mutant(
        "the-twin-lies-beside-the-hole", "index", "python/diffratio/data/twins.py",
        {"(3 - quarter, numbers": "(quarter ^ 1, numbers"}, "tests/diffratio/data/test_twins.py",
    ),
]  # fmt: skip
