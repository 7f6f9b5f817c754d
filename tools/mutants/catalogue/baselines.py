"""Bugs in token merging and pruning, in uniform MoD's floor, and in what is counted of them."""

from .mutant import Mutant

SOURCE, TESTS = "python/diffratio/baselines/", "tests/diffratio/baselines/test_"
TOME, ATEDM = f"{SOURCE}tome.py", f"{SOURCE}atedm.py"
OF_TOME, OF_ATEDM, OF_APPLY = f"{TESTS}tome.py", f"{TESTS}atedm.py", f"{TESTS}apply.py"
FLOPS = "python/diffratio/evaluation/flops/"
OF_FLOPS = "tests/diffratio/evaluation/test_baseline_flops.py"

BASELINES = [
    Mutant(
        "tokens-are-likened-by-their-length", "formula", TOME,
        {"metric = F.normalize(x.detach(), dim=-1)": "metric = x.detach()"}, OF_TOME,
    ),
    Mutant(
        "a-draw-s-row-and-column-change-places", "wrong axis", TOME,
        {"rows + choice // 2, columns + choice % 2": "rows + choice % 2, columns + choice // 2"}, OF_TOME,
    ),
    Mutant(
        "an-odd-row-has-destinations", "off by one", TOME,
        {"2 * torch.arange(height // 2, device=device)": "2 * torch.arange(-(-height // 2), device=device)"},
        f"{OF_TOME} -k odd_side",
    ),
    Mutant(
        "an-odd-batch-draws-too", "branch always taken", TOME,
        {"if x.shape[0] % 2 == 0:": "if True:"}, OF_TOME,
    ),
    Mutant(
        "transformers-of-a-pipeline-share-a-draw", "shared state", f"{SOURCE}apply.py",
        {"num_regions=baseline.regions), replace(baseline))": "num_regions=baseline.regions), baseline)"},
        OF_APPLY,
    ),
    Mutant(
        "a-second-attention-is-not-merged", "branch forgotten", TOME,
        {"after = replace(after, attention=attending(after.attention))": "pass"},
        "tests/diffratio/families/test_baselines.py -k merges_its_image",
    ),
    Mutant(
        "rank-flows-the-other-way", "wrong axis", ATEDM,
        {"rank = rank @ attention": "rank = rank @ attention.mT"}, OF_ATEDM,
    ),
    Mutant(
        "heads-add-up-unsquared", "formula", ATEDM,
        {"page_rank(weights, self.how.iterations).square()": "page_rank(weights, self.how.iterations)"},
        OF_ATEDM,
    ),
    Mutant(
        "a-decimal-ratio-loses-a-token", "rounding", ATEDM,
        {"(1 - Fraction(str(self.ratio))) * tokens": "(1 - self.ratio) * tokens"}, OF_ATEDM,
    ),
    Mutant(
        "pruned-rows-are-copied-from-the-first-sample", "index", ATEDM,
        {"best = best + tokens * torch": "best = best + 0 * torch"}, OF_ATEDM,
    ),
    Mutant(
        "heads-take-turns-at-shared-keys", "index", ATEDM,
        {"of_key = head // shared": "of_key = head % given.kv_heads"}, f"{OF_ATEDM} -k maps_is",
    ),
    Mutant(
        "maps-without-the-attention-s-gate", "branch forgotten", ATEDM,
        {"attended = attended * products.product(run, normed, own.gate).sigmoid()": "pass"},
        f"{OF_ATEDM} -k maps_is",
    ),
    Mutant(
        "the-cleanest-steps-are-open", "order", ATEDM,
        {"region >= first for": "region < self.regions - first for"}, OF_ATEDM,
    ),
    Mutant(
        "one-open-layer-too-few", "off by one", ATEDM,
        {"layer < -(-count // 2)": "layer < count // 2"}, OF_ATEDM,
    ),
    Mutant(
        "a-named-mod-rounds-up", "setting forgotten", f"{SOURCE}apply.py",
        {"DiffRatioConfig(baseline.ratio, rounding=baseline.rounding))": "DiffRatioConfig(baseline.ratio))"},
        OF_APPLY,
    ),
    Mutant(
        "open-steps-count-as-pruned", "setting forgotten", f"{FLOPS}baselines.py",
        {'return dsap_kept(shape, kept) if method == "atedm" else kept, method': "return kept, method"},
        f"{OF_FLOPS} -k 'open or rows'",
    ),
    Mutant(
        "ranking-once-for-all-heads", "factor forgotten", f"{FLOPS}count.py",
        {"2 * shape.heads * ITERATIONS": "2 * ITERATIONS"}, f"{OF_FLOPS} -k counts",
    ),
    Mutant(
        "a-baseline-is-measured-dense", "call forgotten", "python/diffratio/evaluation/cost.py",
        {"            route()\n            peak": "            peak"},
        f"{OF_FLOPS} -k beside",
    ),
]  # fmt: skip
