"""Bugs in what newer families need: norms and positions of query and key, two streams, pinned tokens."""

from .mutant import Mutant

OP = "tests/ops/test_qk_norm_rope.py"
BLOCKS = "tests/diffratio/families/test_blocks.py"
COMPOSITIONS = "tests/diffratio/families/test_compositions.py"
TWO_BINS = "tests/diffratio/families/test_two_bins.py"
TRITON = "diffratio_kernels/ops/qk_norm_rope/triton.py"
CPU = "csrc/cpu/qk_norm_rope.h"
HEADS = "csrc/include/diffratio/heads.cuh"
CUDA = "csrc/include/diffratio/qk_norm_rope.cuh"
CUDA_BACKWARD = "csrc/include/diffratio/qk_norm_rope_backward.cuh"
SIM = "tests/sim/test_cuda_heads.py"
SIM_BUDGET = f"{SIM} -k error_budget"
JOINT = "diffratio_kernels/blocks/joint.py"
NESTED = "diffratio_kernels/blocks/nested.py"
BLENDED = "diffratio_kernels/blocks/blended.py"
PARALLEL = "diffratio_kernels/blocks/parallel.py"
ROUTED = "diffratio_kernels/blocks/routed.py"
STREAM = "diffratio_kernels/blocks/stream.py"
FORWARD = "python/diffratio/routing/forward.py"
MODULES = "python/diffratio/families/modules.py"
PLACE = "place = index if BY_SAMPLE else index - sample * tokens\n    row = t"
BACK = "return ga * cos + gb * sin, gb * cos - ga * sin"
FLUX = f"{BLOCKS} -k flux"

FAMILIES = [
    Mutant(
        "rope-turns-the-other-way", "sign", TRITON,
        {"(a * cos - b * sin).to(dtype)": "(a * cos + b * sin).to(dtype)"}, OP,
    ),
    Mutant(
        "rope-by-the-packed-row", "index", TRITON,
        {PLACE: "place = t\n    row = t"}, OP,
    ),
    Mutant(
        "rope-of-the-first-sample", "index", TRITON,
        {PLACE: "place = index - sample * tokens\n    row = t"},
        OP,
    ),
    Mutant(
        "rms-takes-the-mean-off", "formula", TRITON,
        {"mean = mean / count if LAYER else mean * 0.0": "mean = mean / count"}, OP,
    ),
    Mutant(
        "halves-are-neighbours", "index", TRITON,
        {"tl.where(turns, p, 2 * p), tl.where(turns, p + PAIRS, 2 * p + 1)": "2 * p, 2 * p + 1"}, OP,
    ),
    Mutant(
        "norms-of-heads-across-heads", "formula", TRITON,
        {"_stats(a, b, mask, H * D if ACROSS else D, eps, NORM == \"layer\", ACROSS)":
         "_stats(a, b, mask, D, eps, NORM == \"layer\", ACROSS)"}, OP,
    ),
    Mutant(
        "gradient-turned-forwards", "sign", TRITON,
        {BACK: "return ga * cos - gb * sin, gb * cos + ga * sin"},
        OP,
    ),
    Mutant(
        "gradient-without-the-dot", "formula", TRITON,
        {"ga = rstd * (ga - sums - a * dot)": "ga = rstd * (ga - sums)"}, OP,
    ),
    Mutant(
        "cpu-rope-of-the-row", "index", CPU,
        {"a.table_by_sample ? a.index[t] : a.index[t] % a.tokens": "a.table_by_sample ? a.index[t] : t"}, OP,
    ),
    Mutant(
        "cpu-value-unmoved", "index", CPU,
        {"+ t * a.value_stride, k": "+ 0 * a.value_stride, k"}, OP,
    ),
    Mutant(
        "cuda-rope-of-the-first-sample", "index", HEADS,
        {"a.table_by_sample ? index : index - ": "index - "}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-channels-that-rest-twice", "index", HEADS,
        {"first = a.halves ? 2 * a.pairs : 0": "first = 0"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-angles-of-the-first-head", "index", HEADS,
        {"(a.table_heads > 1 ? head : 0)": "0"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-neighbours-share-a-norm", "partial sums counted twice", "csrc/include/diffratio/reduce.cuh",
        {"if (offset < lanes)": "if (offset <= lanes)"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-values-are-normed", "formula", CUDA, {"if (part == 2)": "if (part == 3)"},
        f"{SIM} -k exact_copies",
    ),
    Mutant(
        "cuda-streams-on-each-other", "index", CUDA,
        {"row = t + (a.shift ? a.shift[sample_of_row(index, a.tokens)] : 0)": "row = t"},
        f"{SIM} -k their_places",
    ),
    Mutant(
        "cuda-gradient-turned-forwards", "sign", CUDA_BACKWARD,
        {"turn<n, kAligned, true>": "turn<n, kAligned, false>"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-rms-gradient-less-its-mean", "formula", CUDA_BACKWARD,
        {"a.norm == Norm::kLayer ? sums[1] / channels : 0": "sums[1] / channels"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-first-row-again-at-the-end", "partial sums counted twice", CUDA_BACKWARD,
        {"item = none, t = 0;": "t = 0;"}, SIM_BUDGET,
    ),
    Mutant(
        "cuda-sums-of-heads-read-too-early", "missing barrier", CUDA_BACKWARD,
        {"  });\n  __syncthreads();\n  for (int column": "  });\n  for (int column"},
        f"{SIM} -k every_schedule",
    ),
    Mutant(
        "cuda-sums-of-heads-overwritten-while-read", "missing barrier", CUDA_BACKWARD,
        {"  __syncthreads();  // the previous sums have been read\n": ""}, f"{SIM} -k every_schedule",
    ),
    Mutant(
        "text-at-the-images-place", "index", JOINT,
        {"text.rows, joint, rows.cu_seqlens[1:])": "text.rows, joint, rows.cu_seqlens[:-1])"}, FLUX,
    ),
    Mutant(
        "text-and-image-parted-wrongly", "index", JOINT,
        {"both[:, : counts[0]].flatten(0, 1), both[:, counts[0] :].flatten(0, 1)":
         "both[:, second:].flatten(0, 1), both[:, :second].flatten(0, 1)"}, FLUX,
    ),
    Mutant(
        "pinned-tokens-are-scored", "formula", JOINT,
        {"neutral = neutral_logit(score_scale)": "neutral = 1.0"}, FLUX,
    ),
    Mutant(
        "pinned-tokens-are-left-out", "index", JOINT,
        {"return flat[:, layout.routed[0] : layout.routed[0] + layout.pinned[0]].flatten()":
         "return flat[:, : layout.pinned[0]].flatten()"}, FLUX,
    ),
    Mutant(
        "padding-of-text-is-attended-to", "mask", JOINT,
        {"keys = text.rows.key_lengths + rows.cu_seqlens.diff()": "keys = None"}, f"{BLOCKS} -k qwen",
    ),
    Mutant(
        "text-modulated-by-the-first-sample", "index", JOINT,
        {"rows.groups = stream.groups": "rows.groups = None"},
        FLUX,
    ),
    Mutant(
        "score-multiplies-attention-too", "formula", PARALLEL,
        {"return inner, Rescale(\"none\") if alone else rescale": "return inner, rescale"}, FLUX,
    ),
    Mutant(
        "groups-of-other-rows", "index", ROUTED,
        {"replace(rows, groups=image.groups)": "replace(rows, groups=image.groups.flip(1))"},
        f"{BLOCKS} -k ti2v",
    ),
    Mutant(
        "shorter-samples-keep-others", "mask", FORWARD,
        {"ranked = logits.masked_fill(others, torch.nan)": "ranked = logits"},
        f"{BLOCKS} -k edit_plus",
    ),
    Mutant(
        "logits-of-the-first-tokens", "index", FORWARD,
        {"logits.gather(1, layout.order[:, : max(layout.routed)])": "logits[:, : max(layout.routed)]"}, FLUX,
    ),
    Mutant(
        "bins-weighed-the-other-way", "formula", BLENDED,
        {"torch.lerp(small.to(dtype), large": "torch.lerp(large.to(dtype), small"},
        f"{TWO_BINS} -k ltx2",
    ),
    Mutant(
        "bias-of-a-parallel-block-once-on-every-row", "bias not weighed", BLENDED,
        {"_weigh_bias(branch, out.bias, 0, rows)": "branch + out.bias"}, f"{TWO_BINS} -k flux_single",
    ),
    Mutant(
        "text-of-the-small-bin-attends-to-the-large-one", "wrong offsets", NESTED,
        {"count + heads.text.shape[0]": "count + heads.text.shape[0] - 1"}, f"{TWO_BINS} -k flux_double",
    ),
    Mutant(
        "padding-of-the-small-bin-counts", "wrong offsets", "diffratio_kernels/blocks/two_bin.py",
        {"- bins.cu_seqlens_large.diff() + bins.cu_seqlens_small.diff()": ""}, f"{TWO_BINS} -k ideogram4",
    ),
    Mutant(
        "pinned-tokens-behind-in-two-bins", "wrong order", "python/diffratio/routing/forward.py",
        {"rescale.score_scale, pinned_first=True)": "rescale.score_scale)"},
        f"{BLOCKS} -k 'two_bins and flux_single'",
    ),
    Mutant(
        "folded-weight-forgets-its-shift", "formula", STREAM,
        {"shift = shift + (1 + scale) * bias": "shift = shift + bias"}, f"{BLOCKS} -k cogvideox",
    ),
    Mutant(
        "references-are-routed", "index", "python/diffratio/families/references.py",
        {"return None if count in (0, own.shape[0]) else count": "return None"}, f"{BLOCKS} -k kontext",
    ),
    Mutant(
        "hooked-norms-are-passed-over", "silence", MODULES,
        {"return reason or patched(type(module)) or inside": "return reason or patched(type(module))"},
        "tests/diffratio/families/test_hooks.py -k flux",
    ),
    Mutant(
        "parallelism-switched-on-later", "silence", "python/diffratio/families/inspection.py",
        {'[getattr(own.get("processor"), "_parallel_config", None) for own in self._processors],': ""},
        f"{COMPOSITIONS} -k 'context_parallelism and flux'",
    ),
    Mutant(
        "told-tensors-are-constants-of-a-graph", "stale", "python/diffratio/routing/graphs.py",
        {"shared.told = given[2]": "pass"}, "tests/diffratio/families/test_recorded.py -k told",
    ),
    Mutant(
        "references-of-a-compiled-model-pass", "silence", "python/diffratio/families/references.py",
        {"torch._assert_async((ids[..., axis] == ids[..., :1, axis]).all(), COMPILED)": "pass"},
        "tests/diffratio/families/test_compiled_blocks.py -k references",
    ),
    Mutant(
        "text-of-wan-is-projected-anew", "silence", "python/diffratio/routing/text_cache.py",
        {'"caption_projection", "text_embedder"': '("caption_projection",)'},
        f"{COMPOSITIONS} -k 'projected_once and wan'",
    ),
    Mutant(
        "padding-before-what-is-routed", "index", STREAM,
        {"(*spans, *others)": "(*others, *spans)"}, f"{BLOCKS} -k 'everything and ragged'",
    ),
]  # fmt: skip
