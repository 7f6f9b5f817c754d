"""Bugs in repainting: masks, holes, the lazy model, what is composed, crops, steps."""

from .mutant import Mutant

SOURCE, TESTS = "python/diffratio/inpainting/", "tests/diffratio/inpainting/test_"
MASKS, HOLE, LAZY = (f"{SOURCE}{name}.py" for name in ("masks", "hole", "lazy"))
COMPOSE, SYSTEMS, SAMPLING = (f"{SOURCE}{name}.py" for name in ("compose", "systems", "sampling"))
OF_MASKS, OF_LAZY, OF_COMPOSE = f"{TESTS}masks.py", f"{TESTS}lazy.py", f"{TESTS}compose.py"
OF_SYSTEMS = f"{TESTS}systems.py"

INPAINTING = [
    Mutant(
        "masks-by-the-place-in-the-batch", "index", MASKS,
        {"uniforms(seed, items, _NUMBERS)": "uniforms(seed, torch.arange(len(items)), _NUMBERS)"}, OF_MASKS,
    ),
    Mutant(
        "a-box-never-reaches-the-last-column", "off by one", MASKS,
        {"int(draws[3] * (side - width + 1))": "int(draws[3] * (side - width))"}, OF_MASKS,
    ),
    Mutant(
        "a-token-is-of-the-hole-by-half", "rounding", MASKS,
        {"return F.max_pool2d(mask.float(), factor) > 0": "return F.avg_pool2d(mask.float(), factor) >= 0.5"},
        OF_MASKS,
    ),
    Mutant(
        "a-shrunk-mask-loses-thin-lines", "rounding", f"{SOURCE}pictures.py",
        {"resized(mask.float(), size) > 0": "resized(mask.float(), size) >= 0.5"}, OF_MASKS,
    ),
    Mutant(
        "padding-of-a-hole-writes-the-last-token", "index", HOLE,
        {"masked_fill(~mask.gather(1, order), tokens)": "masked_fill(~mask.gather(1, order), tokens - 1)"},
        OF_LAZY,
    ),
    Mutant(
        "guidance-pairs-neighbours-of-a-hole", "wrong order of samples", HOLE,
        {"places=torch.cat([self.places] * 2)": "places=self.places.repeat_interleave(2, 0)"}, OF_SYSTEMS,
    ),
    Mutant(
        "a-hole-s-padding-is-attended-to", "mask forgotten", LAZY,
        {"valid = None if hole is None or hole.valid is None else hole.valid[:, None]": "valid = None"},
        OF_LAZY,
    ),
    Mutant(
        "a-context-block-without-its-residual", "formula", LAZY,
        {"return x + self.mlp(self.norm2(x))": "return self.mlp(self.norm2(x))"}, OF_LAZY,
    ),
    Mutant(
        "a-system-s-model-forgets-its-dtype", "dtype", f"{SOURCE}pixart.py",
        {"made if made.dtype == model.dtype else made.to(model.dtype)": "made"}, f"{OF_SYSTEMS} -k mode",
    ),
    Mutant(
        "the-context-s-places-at-another-scale", "argument forgotten", LAZY,
        {"            interpolation_scale=self.pos_embed.interpolation_scale,\n": ""}, OF_LAZY,
    ),
    Mutant(
        "the-packed-block-forgets-the-counts", "mask forgotten", HOLE,
        {"        return None if hole is None else hole.counts": "        return None"}, OF_LAZY,
    ),
    Mutant(
        "a-seam-without-its-last-neighbour", "off by one", COMPOSE,
        {"places[-1] + 2": "places[-1] + 1"}, OF_COMPOSE,
    ),
    Mutant(
        "all-are-solved-when-one-is", "reduction", COMPOSE,
        {"bool((size <= enough).all())": "bool((size <= enough).any())"}, OF_COMPOSE,
    ),
    Mutant(
        "a-blend-is-not-pasted", "mask forgotten", COMPOSE,
        {"return pasted(blended, picture, mask)": "return blended"}, OF_COMPOSE,
    ),
    Mutant(
        "a-crop-of-half-a-token", "rounding", SYSTEMS,
        {"round(min(height, width) / 2 / unit) * unit": "round(min(height, width) / 2)"}, OF_SYSTEMS,
    ),
    Mutant(
        "every-crop-gets-the-first-one-s-paint", "index", SYSTEMS,
        {"resized(made[row : row + 1], (bottom": "resized(made[:1], (bottom"}, OF_SYSTEMS,
    ),
    Mutant(
        "a-crop-is-painted-into-the-given-picture", "argument written to", SYSTEMS,
        {"whole = pictures.clone()": "whole = pictures"}, OF_SYSTEMS,
    ),
    Mutant(
        "the-mean-of-a-hole-over-the-mask", "wrong denominator", SYSTEMS,
        {"/ (self.where.flatten(1)": "/ (self.mask.flatten(1)"},
        "tests/diffratio/train/test_inpainting.py -k loss",
    ),
    Mutant(
        "the-masked-picture-shows-its-hole", "mask forgotten", SYSTEMS,
        {"known = self.clean.masked_fill(self.mask, 0)": "known = self.clean"}, OF_SYSTEMS,
    ),
    Mutant(
        "strength-begins-with-noise-alone", "branch never taken", SAMPLING,
        {"if how.strength == 1:": "if how.strength > 0:"}, OF_SYSTEMS,
    ),
    Mutant(
        "strength-drops-the-last-steps", "wrong end", SAMPLING,
        {"return self.scheduler.timesteps[first:]": "return self.scheduler.timesteps[: self.taken]"},
        OF_SYSTEMS,
    ),
    Mutant(
        "the-scheduler-s-input-unscaled", "call forgotten", SAMPLING,
        {"noisy = scheduler.scale_model_input(noisy, timestep)": "noisy = noisy"},
        OF_SYSTEMS,
    ),
    Mutant(
        "noise-of-one-whatever-the-scheduler", "factor forgotten", SAMPLING,
        {"latents = noise * scheduler.init_noise_sigma": "latents = noise"}, OF_SYSTEMS,
    ),
    Mutant(
        "the-context-is-encoded-again-every-step", "stale or no cache", SAMPLING,
        {"    edit = system.encoded(model, edit)\n": ""}, OF_SYSTEMS,
    ),
    Mutant(
        "guidance-without-the-null-text-s-mask", "mask forgotten", SAMPLING,
        {"torch.cat([self.null_mask, self.mask])": "torch.cat([self.mask, self.mask])"}, OF_SYSTEMS,
    ),
]  # fmt: skip
