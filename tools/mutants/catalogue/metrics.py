"""Bugs in learned variances, in what judges samples and times layers, in recipes, filters and controls."""

from .mutant import Mutant

PACKAGE = "python/diffratio/"
BOUND, SCHEDULES = f"{PACKAGE}diffusion/variance.py", f"{PACKAGE}diffusion/schedules.py"
NETWORKS, FRECHET = f"{PACKAGE}evaluation/networks.py", f"{PACKAGE}evaluation/frechet.py"
LAYERS, ARGUMENTS = f"{PACKAGE}evaluation/layers.py", f"{PACKAGE}train/arguments.py"
TESTS = "tests/diffratio/"
OF_BOUND = f"{TESTS}diffusion/test_variance.py"
OF_SAMPLING = f"{TESTS}diffusion/test_sampling.py -k 'ddpm and not digits or fall or null'"
OF_LOSS = f"{TESTS}train/test_objective.py"
OF_NETWORKS, OF_LAYERS = f"{TESTS}evaluation/test_networks.py", f"{TESTS}evaluation/test_layers.py"
OF_RAMP, OF_RECIPES = f"{TESTS}train/test_ramp.py", f"{TESTS}train/test_recipes.py"
OF_ROWS = f"{TESTS}data/test_images.py -k rows"

METRICS = [
    Mutant(
        "the-variance-runs-from-beta-down", "swapped arguments", BOUND,
        {"torch.lerp(low, high,": "torch.lerp(high, low,"}, OF_BOUND,
    ),
    Mutant(
        "the-bound-trains-the-mean", "gradient not stopped", BOUND,
        {"(mean * error.detach().float())": "(mean * error.float())"}, OF_BOUND,
    ),
    Mutant(
        "the-first-step-s-variance-vanishes", "special case forgotten", BOUND,
        {"        posterior[0] = posterior[1]\n": ""}, OF_BOUND,
    ),
    Mutant(
        "the-posterior-s-signal-one-step-late", "off by one", BOUND,
        {"torch.cat([signal.new_ones(1), signal[:-1]])": "signal"}, OF_BOUND,
    ),
    Mutant(
        "the-bound-of-one-timestep", "factor forgotten", f"{PACKAGE}train/objective.py",
        {"WEIGHT * self.times.count * mean": "WEIGHT * mean"}, OF_LOSS,
    ),
    Mutant(
        "ddpm-draws-with-the-larger-variance", "setting", SCHEDULES,
        {'else "fixed_small"\n        #': 'else "fixed_large"\n        #'}, OF_SAMPLING,
    ),
    Mutant(
        "the-variance-is-guided-too", "formula", f"{PACKAGE}diffusion/sampling.py",
        {"torch.cat([mean, with_text[:, channels:]], dim=1)":
         "torch.cat([mean, (without + guidance * (with_text - without))[:, channels:]], dim=1)"}, OF_SAMPLING,
    ),
    Mutant(
        "a-pair-of-the-next-caption", "index", NETWORKS,
        {"self._tokenizer(captions[rows])": "self._tokenizer(captions[: len(images[rows])])"}, OF_NETWORKS,
    ),
    Mutant(
        "levels-are-cut-and-not-rounded", "rounding", f"{PACKAGE}evaluation/samples.py",
        {"((images + 1) * 127.5).round()": "((images + 1) * 127.5)"}, OF_NETWORKS,
    ),
    Mutant(
        "parts-of-features-without-their-means", "formula", FRECHET,
        {"+ centred.T @ centred + between": "+ centred.T @ centred"}, OF_NETWORKS,
    ),
    Mutant(
        "fid-against-what-was-trained-on", "held-out data not held out", f"{PACKAGE}evaluation/quality.py",
        {"return images_of(self.held_out, self.progress)": "return images_of(self._train, self.progress)"},
        f"{TESTS}evaluation/test_quality.py -k fid",
    ),
    Mutant(
        "a-layer-s-time-is-that-of-all-runs", "reduction", LAYERS,
        {"[_mean([end - start for start, end in _pairs(one)]) for one in marks]":
         "[sum(end - start for start, end in _pairs(one)) for one in marks]"}, OF_LAYERS,
    ),
    Mutant(
        "a-layer-s-peak-is-what-is-left", "reduction", LAYERS,
        {"most = max(accumulate(event.nbytes() for event in inside), default=0)":
         "most = sum(event.nbytes() for event in inside)"}, OF_LAYERS,
    ),
    Mutant(
        "the-paper-s-model-before-fine-tuning", "index", f"{PACKAGE}evaluation/published/__init__.py",
        {"return found[-1] if found": "return found[0] if found"},
        f"{TESTS}evaluation/test_published_figures.py",
    ),
    Mutant(
        "a-wide-model-learns-no-variance", "wrong count of channels", f"{PACKAGE}train/model.py",
        {"partial(InpaintObjective, system=system), system.channels(model)":
         "partial(InpaintObjective, system=system), model.config.in_channels"}, f"{OF_RECIPES} -k system",
    ),
    Mutant(
        "a-recipe-wins-over-what-is-given", "swapped arguments", ARGUMENTS,
        {"cls(**(settings | given))": "cls(**(given | settings))"},
        f"{TESTS}train/test_arguments.py -k recipe",
    ),
    Mutant(
        "a-recipe-s-sampling-wins", "swapped arguments", f"{PACKAGE}evaluation/quality.py",
        {'(target.run or {}).get("sampling", {}) | told': 'told | (target.run or {}).get("sampling", {})'},
        f"{OF_RECIPES} -k says_how",
    ),
    Mutant(
        "the-variance-type-is-not-written", "setting forgotten", f"{PACKAGE}train/model.py",
        {'from_config(scheduler.config, variance_type="learned_range")': "from_config(scheduler.config)"},
        f"{OF_RECIPES} -k says_how",
    ),
    Mutant(
        "at-least-is-more-than", "comparison", f"{PACKAGE}data/columns.py",
        {'">=": operator.ge': '">=": operator.gt'}, OF_ROWS,
    ),
    Mutant(
        "the-noisiest-regions-are-dense", "order", ARGUMENTS,
        {"return [10] * self.dense_regions + [each + 1] * more + [each] * (others - more)":
         "return [each + 1] * more + [each] * (others - more) + [10] * self.dense_regions"},
        f"{OF_RAMP} -k dense_regions",
    ),
    Mutant(
        "rows-that-were-dropped-are-judged", "setting forgotten", f"{PACKAGE}evaluation/target.py",
        {'"image_column", "keep_rows")': '"image_column")'},
        f"{TESTS}evaluation/test_target.py -k read_as",
    ),
    Mutant(
        "learned-ratios-ramp-as-always", "setting forgotten", f"{PACKAGE}train/ramp.py",
        {"weight=weight, ramp=ramp)": "weight=weight)"}, f"{OF_RAMP} -k chosen",
    ),
    Mutant(
        "a-ramp-turns-back", "state forgotten", f"{PACKAGE}train/ramp.py",
        {"max(self._share, min(1.0, self.step / self.ramp_steps))": "min(1.0, self.step / self.ramp_steps)"},
        f"{OF_RAMP} -k turn_back",
    ),
]  # fmt: skip
