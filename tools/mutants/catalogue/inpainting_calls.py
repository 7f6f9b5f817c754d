"""Bugs around repainting: the pipeline, the command, training and judging."""

from .mutant import Mutant

SOURCE = "python/diffratio/inpainting/"
PIPELINE = f"{SOURCE}pipeline.py"
EDITOR = "python/diffratio/evaluation/editor.py"
TRAIN, JUDGED = "python/diffratio/train/inpainting.py", "python/diffratio/evaluation/inpainting.py"
OF_PIPELINE = "tests/diffratio/inpainting/test_pipeline.py -k"
OF_COMMAND = "tests/diffratio/inpainting/test_command.py -k options_are"
OF_TRAINING = "tests/diffratio/train/test_inpainting.py -k"

INPAINTING_CALLS = [
    Mutant(
        "latents-of-a-picture-unscaled", "factor forgotten", PIPELINE,
        {"clean = latents * self.vae.config.scaling_factor": "clean = latents"}, f"{OF_PIPELINE} made_of",
    ),
    Mutant(
        "a-picture-is-encoded-in-0-to-1", "wrong range", PIPELINE,
        {"torch.float32), size) * 2 - 1": "torch.float32), size)"}, f"{OF_PIPELINE} made_of",
    ),
    Mutant(
        "the-vae-s-seam-stays", "call forgotten", PIPELINE,
        {"made = poisson_blended(made, picture.to(made), mask.to(made.device)).clamp(0, 1)": "pass"},
        f"{OF_PIPELINE} made_of",
    ),
    Mutant(
        "a-model-is-told-its-latents-size", "unit", PIPELINE,
        {"size=frame.pictures.shape[-2:]": "size=edit.clean.shape[-2:]"},
        f"{OF_PIPELINE} settings_of",
    ),
    Mutant(
        "a-data-set-s-negative-prompts-are-dropped", "argument forgotten", PIPELINE,
        {"self.dataset.encode([one]) if one else null for": "null for"}, f"{OF_PIPELINE} data_set_s",
    ),
    Mutant(
        "a-call-of-another-system-by-the-last-one", "stale or no cache", f"{SOURCE}edit.py",
        {" or model.config.system != system": ""}, f"{OF_PIPELINE} wants_a_model",
    ),
    Mutant(
        "results-of-several-pictures-take-turns", "wrong order of samples", PIPELINE,
        {"return whole.repeat_interleave(self.copies, dim=0)":
         "return whole.repeat(self.copies, *[1] * (whole.dim() - 1))"}, f"{OF_PIPELINE} results_of",
    ),
    Mutant(
        "latents-of-a-callback-are-dropped", "result forgotten", PIPELINE,
        {'changed.get("latents", latents)': "latents"}, f"{OF_PIPELINE} its_call",
    ),
    Mutant(
        "a-negative-prompt-guides-towards", "swapped arguments", PIPELINE,
        {"text = Text(tokens, null, mask, null_mask)": "text = Text(null, tokens, null_mask, mask)"},
        f"{OF_PIPELINE} guidance_leads",
    ),
    Mutant(
        "half-grey-is-not-white", "comparison", f"{SOURCE}pictures.py",
        {'"mask_image", 1).cpu() >= 0.5': '"mask_image", 1).cpu() > 0.5'}, f"{OF_PIPELINE} one_half",
    ),
    Mutant(
        "a-run-is-edited-by-another-sampler", "setting forgotten", EDITOR,
        {'sampler or run.get("sampling", {}).get("sampler", "dpm++")': 'sampler or "dpm++"'},
        f"{OF_PIPELINE} recipe",
    ),
    Mutant(
        "the-command-s-seed-is-forgotten", "setting forgotten", "python/diffratio/cli/inpaint.py",
        {"manual_seed(seed)": "manual_seed(0)"}, OF_COMMAND,
    ),
    Mutant(
        "holes-of-every-seed-are-alike", "wrong key of a random number", "python/diffratio/train/data.py",
        {"seed=arguments.seed + 1": "seed=1"}, f"{OF_TRAINING} holes_of_a_run",
    ),
    Mutant(
        "a-run-is-validated-on-its-own-holes", "held-out data not held out", "python/diffratio/train/data.py",
        {"holes = _holes(arguments, base, dataset, seed=0)":
         "holes = _holes(arguments, base, dataset, seed=arguments.seed + 1)"},
        f"{OF_TRAINING} holes_of_a_run",
    ),
    Mutant(
        "masks-of-latents-are-drawn-on-latents", "unit", "python/diffratio/train/data.py",
        {'factor = dataset.source.size // dataset[0]["latents"].shape[-1]': "factor = 1"},
        f"{OF_TRAINING} holes_of_a_run",
    ),
    Mutant(
        "edited-with-the-package-s-noise", "setting forgotten", EDITOR,
        {"sampling_scheduler(target.schedule, sampler": "sampling_scheduler(None, sampler"},
        f"{OF_PIPELINE} of_its_training",
    ),
    Mutant(
        "a-hub-s-pipeline-is-not-found", "condition", EDITOR,
        {'"local_files_only": on_disk(name)': '"local_files_only": True'}, f"{OF_PIPELINE} hub",
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
        {"(squares / inside.flatten(1).sum(1))": "(squares / inside[0].numel())"},
        f"{OF_TRAINING} twins_match",
    ),
    Mutant(
        "every-hole-gets-the-same-noise", "wrong key of a random number", JUDGED,
        {"mixed_seed(how.seed, n)": "mixed_seed(how.seed, 0)"}, f"{OF_TRAINING} holes_get",
    ),
    Mutant(
        "painted-with-a-fixed-variance", "setting forgotten", EDITOR,
        {"learned = predicts_variance(target.model, system_of(system).channels(target.model))":
         "learned = False"},
        f"{OF_TRAINING} painted_by",
    ),
    Mutant(
        "each-chunk-has-the-first-one-s-text", "index", JUDGED,
        {"captions(self.wanted[numbers]),\n                    torch":
         "captions(self.wanted[: len(numbers)]),\n                    torch"},
        f"{OF_TRAINING} painted_by",
    ),
    Mutant(
        "hidden-pictures-are-shown", "control that controls nothing", JUDGED,
        {"if self.hidden else picture": "if not self.hidden else picture"}, f"{OF_TRAINING} holes_get",
    ),
    Mutant(
        "quarters-of-the-noise-backwards", "index", JUDGED,
        {"error[quarter == q]": "error[quarter == QUARTILES - 1 - q]"}, f"{OF_TRAINING} quarters",
    ),
    Mutant(
        "flops-of-all-regions-for-one-step", "wrong denominator", JUDGED,
        {'            one["gflop"] /= regions\n': ""}, f"{OF_TRAINING} costs",
    ),
    Mutant(
        "every-region-is-timed-in-the-middle-one", "index", JUDGED,
        {"int((region + 0.5) * 1000 / regions)": "int(0.5 * 1000)"}, f"{OF_TRAINING} costs",
    ),
    Mutant(
        "a-hole-in-pixels-instead-of-tokens", "unit", JUDGED,
        {"self._edit.where.float()": "self._edit.mask.float()"}, f"{OF_TRAINING} costs",
    ),
    Mutant(
        "the-twin-lies-beside-the-hole", "index", "python/diffratio/data/twins.py",
        {"(3 - quarter, numbers": "(quarter ^ 1, numbers"}, "tests/diffratio/data/test_twins.py",
    ),
]  # fmt: skip
