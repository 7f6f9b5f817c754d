"""Planted in the CUDA C++, which runs in the simulator."""

from .mutant import Mutant
from .selections import BUDGET, LAYOUTS, SCHEDULES, SIM_ROWS, SIM_SELECT

INCLUDE = "csrc/include/diffratio/"
REDUCE, ROW, INDEX = INCLUDE + "reduce.cuh", INCLUDE + "row.cuh", INCLUDE + "index.cuh"
KEY, RADIX, TOPK = INCLUDE + "order_key.cuh", INCLUDE + "radix_select.cuh", INCLUDE + "topk_select.cuh"
LOGITS, SUMS = INCLUDE + "router_logits.cuh", INCLUDE + "column_sums.cuh"
GATHER, SCATTER = INCLUDE + "gather_adaln.cuh", INCLUDE + "scatter_rescale.cuh"
PLACES = "tests/sim/test_cuda_select.py -k cu_seqlens_and_the_row_map"
SCATTER_BACKWARD = INCLUDE + "scatter_rescale_backward.cuh"

CUDA = [
    Mutant(
        "row-sums-overwritten-while-read",
        "missing barrier",
        REDUCE,
        {"  __syncthreads();  // the previous sums have been read\n": ""},
        SCHEDULES,
    ),
    Mutant(
        "row-sums-read-too-early",
        "missing barrier",
        REDUCE,
        {"warp] = sums[i];\n  __syncthreads();\n": "warp] = sums[i];\n"},
        SCHEDULES,
    ),
    Mutant(
        "kept-rows-read-too-early",
        "missing barrier",
        SUMS,
        {"kept[before] = {token, t};\n  __syncthreads();\n": "kept[before] = {token, t};\n"},
        SCHEDULES,
    ),
    Mutant(
        "histogram-counted-while-cleared",
        "missing barrier",
        RADIX,
        {"make_int4(0, 0, 0, 0);\n  __syncthreads();\n": "make_int4(0, 0, 0, 0);\n"},
        SIM_SELECT,
    ),
    Mutant(
        "tile-counts-overwritten-while-read",
        "missing barrier",
        TOPK,
        {"  if constexpr (!kOneTile) __syncthreads();  // the counts": "  // the counts"},
        "tests/sim/test_cuda_select.py -k many_tokens_under",
    ),
    Mutant(
        "dropped-tokens-without-a-place",
        "stale memory",
        TOPK,
        {"a.place[first_row + token] = -1;": ";"},
        PLACES,
    ),
    Mutant("offsets-without-their-zero", "stale memory", TOPK, {"if (b == 0) a.offsets[0] = 0;": ""}, PLACES),
    Mutant(
        "half-a-warp",
        "wrong warp mask",
        REDUCE,
        {"constexpr unsigned kAllLanes = ~0u;": "constexpr unsigned kAllLanes = 0xffffu;"},
        BUDGET,
    ),
    Mutant(
        "bins-of-lanes-beyond-the-warp",
        "wrong warp mask",
        RADIX,
        {"lane + offset < kWarp ? higher : 0": "higher"},
        SIM_SELECT,
    ),
    Mutant(
        "nan-by-its-bits", "NaN order", KEY, {"  if (logit != logit) return kSmallestKey;\n": ""}, SIM_SELECT
    ),
    Mutant(
        "minus-zero-below-zero",
        "-0 order",
        KEY,
        {"logit == 0.0f ? 0u : __float_as_uint(logit)": "__float_as_uint(logit)"},
        SIM_SELECT,
    ),
    Mutant(
        "keys-compared-signed",
        "signed key compare",
        TOPK,
        {"key > threshold.key || wanted": "int(key) > int(threshold.key) || wanted"},
        SIM_SELECT,
    ),
    Mutant(
        "ties-to-the-highest-lane",
        "reversed tie",
        TOPK,
        {"__popc(tied & lower_lanes) < threshold.wanted": "__popc(tied & ~lower_lanes) <= threshold.wanted"},
        SIM_SELECT,
    ),
    Mutant(
        "one-more-tie",
        "k+1",
        TOPK,
        {"__popc(tied & lower_lanes) < threshold.wanted": "__popc(tied & lower_lanes) <= threshold.wanted"},
        SIM_SELECT,
    ),
    Mutant(
        "prefix-of-wrong-digit",
        "wrong digit shift",
        RADIX,
        {">> shift >> kDigitBits == 0": ">> shift >> kDigitBits >> kDigitBits == 0"},
        SIM_SELECT,
    ),
    Mutant(
        "tokens-beyond-the-end",
        "missing tail mask",
        TOPK,
        {"order_key(logits_[token]) : kNoKey": "order_key(logits_[token]) : order_key(0.0f)"},
        SIM_SELECT,
    ),
    Mutant(
        "small-bin-not-first",
        "two-bin prefix order",
        TOPK,
        {"in[1] >> lane & 1 ? slot[1] : keep[1] + slot[0] - slot[1]": "slot[0]"},
        SIM_SELECT,
    ),
    Mutant(
        "modulation-by-packed-row",
        "wrong sample's modulation",
        GATHER,
        {"owner_of<kPlain>(a.groups, source, a.tokens)": "owner_of<kPlain>(a.groups, t, a.tokens)"},
        BUDGET,
    ),
    Mutant(
        "variance-cancels",
        "variance by E[x^2] - mean^2",
        ROW,
        {
            "squares[0] += (value - mean) * (value - mean)": "squares[0] += value * value",
            "{mean, rsqrtf(squares[0] / width + eps)}": (
                "{mean, rsqrtf(squares[0] / width - mean * mean + eps)}"
            ),
        },
        f"{SIM_ROWS} -k far_from_zero",
    ),
    Mutant(
        "without-eps",
        "eps forgotten",
        ROW,
        {"{mean, rsqrtf(squares[0] / width + eps)}": "{mean, rsqrtf(squares[0] / width)}"},
        BUDGET,
    ),
    Mutant(
        "32-bit-row-offset",
        "int32 offset",
        GATHER,
        {"(a.gather ? source : t) * a.width": "static_cast<int>(a.gather ? source : t) * width"},
        "tests/sim/test_cuda_large.py",
    ),
    Mutant(
        "rows-gathered-only-where-they-are-copied",
        "wrong row",
        GATHER,
        {"a.gather ? source : t": "a.rows ? source : t"},
        BUDGET,
    ),
    Mutant(
        "gather-alignment-unchecked",
        "alignment check removed",
        "csrc/cuda/gather_adaln.cu",
        {" && aligned(a.shift) && aligned(a.scale) && all_aligned({a.x, a.rows, a.normed})": ""},
        LAYOUTS,
        sanitize=True,
    ),
    Mutant(
        "logits-beyond-the-row",
        "dropped mask",
        INDEX,
        {"column + i < width ? row[column + i] : from_float<T>(0)": "row[column + i]"},
        f"{SIM_ROWS} -k 'error_budget and 9 and not 1152'",
        sanitize=True,
    ),
    Mutant(
        "last-block-of-rows-missing",
        "unwritten output rows",
        "csrc/cuda/launch.h",
        {"ceil_div<int64_t>(rows, rows_per_block)": "std::max<int64_t>(rows / rows_per_block, 1)"},
        BUDGET,
    ),
    Mutant(
        "last-slice-dropped",
        "last slice dropped",
        SUMS,
        {"for (int64_t s = 0; s < slices; ++s) sum": "for (int64_t s = 0; s < slices - 1; ++s) sum"},
        BUDGET,
    ),
    Mutant(
        "first-row-of-a-warp-counted-twice",
        "partial sums counted twice",
        SUMS,
        {"w < warp ? of_warp[w] : 0": "w <= warp ? of_warp[w] : 0"},
        BUDGET,
    ),
    Mutant(
        "columns-beyond-the-width",
        "dropped mask",
        SUMS,
        {"    if (d >= width) continue;\n": ""},
        f"{SIM_ROWS} -k 'error_budget and 40'",
        sanitize=True,
    ),
    Mutant(
        "without-score-scale",
        "forgotten score_scale",
        SCATTER,
        {"1.0f : a.score_scale * sigmoid(a.logits[r])": "1.0f : sigmoid(a.logits[r])"},
        BUDGET,
    ),
    Mutant(
        "gate-on-hidden",
        "gate before residual",
        SCATTER,
        {"F::delta(old, h, u)": "F::delta(old, gates.value[j] * h, u)"},
        BUDGET,
    ),
    Mutant(
        "unkept-rows-unwritten",
        "rows not selected not copied",
        SCATTER,
        {"store<n, kAligned>(out, column, width, load<n, kAligned>(x, column, width));": ""},
        BUDGET,
    ),
    Mutant(
        "score-of-the-packed-row",
        "wrong row",
        SCATTER,
        {"const float factor = score(a, r);": "const float factor = score(a, t);"},
        BUDGET,
    ),
    Mutant(
        "in-place-at-the-packed-row",
        "in place: written elsewhere",
        SCATTER,
        {"const int64_t r = a.place ? i : a.index[i], t": "const int64_t r = i, t"},
        f"{SIM_ROWS} -k in_place",
    ),
    Mutant(
        "logit-gradient-unwritten",
        "rows not selected not zeroed",
        SCATTER_BACKWARD,
        {"    if (threadIdx.x == 0) b.grad_logits[r] = 0;\n": ""},
        SCHEDULES,
    ),
    Mutant(
        "gate-of-the-packed-row",
        "wrong sample's modulation",
        INCLUDE + "gate_residual.cuh",
        {"owner_of<false>(a.groups, a.index[t], a.tokens)": "owner_of<false>(a.groups, t, a.tokens)"},
        BUDGET,
    ),
    Mutant(
        "gate-gradient-of-the-row-of-x",
        "wrong row",
        INCLUDE + "gate_residual_backward.cuh",
        {"(int64_t, int64_t t) const { return t; }": "(int64_t r, int64_t) const { return r; }"},
        BUDGET,
    ),
    Mutant(
        "gate-alignment-unchecked",
        "alignment check removed",
        "csrc/cuda/gate_residual.cu",
        {"all_aligned({a.hidden, a.branch, a.out, a.norm.weight, a.norm.bias})": "true"},
        LAYOUTS,
        sanitize=True,
    ),
    Mutant(
        "logit-gradient-of-one-lane",
        "wrong gradient",
        SCATTER_BACKWARD,
        {"    row_sums(grad_score);\n  }\n": "  }\n"},
        BUDGET,
    ),
]
