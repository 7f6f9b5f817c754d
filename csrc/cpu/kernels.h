// The CPU row kernels: raw pointers, no torch, every function works on the rows [begin, end).
//
// Letters: B samples, N tokens, D width, T packed rows. Packed row t is row index[t] of the flattened
// [B*N] and belongs to sample index[t] / N. Its modulation is that of its sample or, with groups [B*N], row
// groups[index[t]]: vectors [B, D] are then [G, D]. Modulation vectors and logits are in the accumulation type
// (double for double, float otherwise).
#pragma once

#include <cstdint>

namespace diffratio {

enum class Element : int { kFloat, kDouble, kBFloat16, kHalf };

enum class Norm : int { kNone, kRms, kLayer };
constexpr int64_t kMaxHeadWidth = 512;

// What the router score multiplies (see scatter_rescale.h).
enum class Rescale : int { kMlp, kResidual, kOutput, kNone };

struct AdalnArgs {
  const void* x;         // [B*N, D] with gather, else [T, D]
  const int64_t* index;  // [T]
  bool gather;           // read row index[t] (true) or row t (false)
  int64_t tokens, width;
  const void *shift, *scale;  // [B, D]
  Norm norm;
  double eps;
  const int64_t* groups;  // or null
  void* rows;    // [T, D] copy of the kept rows; null without gather
  void* normed;  // [T, D]
};

struct AdalnBackwardArgs {
  const void* rows;      // [T, D] input of the norm
  const int64_t* index;  // [T]
  const int32_t* place;  // [B*N] packed row of each row of x, -1 where none; null without gather
  int64_t count, tokens, width;
  const void* scale;        // [B, D]
  const void* grad_rows;    // [T, D] or null
  const void* grad_normed;  // [T, D]
  Norm norm;
  double eps;
  const int64_t* groups;  // or null
  void* grad_x;                   // [B*N, D] with gather, else [T, D]
  void* stats;                    // [T, 2] mean and 1/std, written by the row pass, read by the column pass
  void *grad_shift, *grad_scale;  // [B, D]
};

struct HeadsArgs {
  const void* x;  // [T, H d]
  int64_t stride, heads;
  const void *weight, *bias;  // [d], across heads [H d], or null
};

struct QkNormRopeArgs {
  HeadsArgs query, key;
  const void* value;  // [T, h d]
  int64_t value_stride;
  const int64_t* index;  // [T]
  int64_t tokens, width;  // N, d
  Norm norm;
  bool across_heads;
  double eps;
  const void *cos, *sin;  // [N or B*N, 1 or H, pairs] or null
  int64_t table_heads, pairs;
  bool table_by_sample, halves;
  const int32_t* shift;  // [B] or null: row t is written to row t + shift of its sample
  void* out;             // [.., H + 2h, d]
};

// The norm of a branch before its gate.
struct BranchNorm {
  Norm kind;                  // kNone: the branch as it is
  const void *weight, *bias;  // [D] or null
  double eps;
};

struct GateArgs {
  const void *hidden, *branch;  // [T, D]
  const void* gate;             // [B, D]
  const int64_t *index, *groups;  // [T]; [B*N] or null
  int64_t tokens, width;
  BranchNorm norm;
  void* out;  // [T, D]
};

// Of rows that end in gate * v with v = weight * n + bias, n the branch as it is or normalised, and g their gradient:
struct GateSums {
  void* stats;   // [T, 2] mean and 1/std of the branch, written by the row pass, read by the column pass; or null
  void* normed;  // [B, D], sum of g * n
  void* plain;   // [B, D], sum of g, or null
};

struct GateBackwardArgs {
  GateArgs forward;  // `hidden` and `out` unused
  int64_t count;
  const void* grad_out;  // [T, D]
  void* grad_branch;     // [T, D]
  GateSums sums;
};

struct ScatterArgs {
  const void* x;         // [B*N, D]
  const int32_t* place;  // [B*N]
  const void *hidden, *branch;  // [T, D]
  const void* gate;             // [B, D]
  const void* logits;           // [B*N]
  int64_t tokens, width;
  Rescale rescale;
  double score_scale;
  void* out;  // [B*N, D]
  const int64_t* groups;  // or null
  BranchNorm norm;
};

struct ScatterBackwardArgs {
  ScatterArgs forward;  // `out` unused
  const int64_t* index;  // [T]
  int64_t count;
  const void* grad_out;                          // [B*N, D]
  void *grad_x, *grad_hidden, *grad_branch;      // like x, hidden, branch
  void* grad_logits;                             // [B*N]
  GateSums sums;
};

// What stands between the products of an MLP, of a gated one act(gate) * value (see activation.h).
enum class Activation : int { kGeluTanh, kGelu, kSilu };

struct ActivationArgs {
  Activation kind;
  const void* gate;  // [T, F]
  int64_t gate_stride;
  const void* value;  // [T, F] or null
  int64_t value_stride;
  const int64_t* index;  // [T] or null
  const void* logits;    // [B*N] or null: no scores
  double score_scale;
  int64_t width;  // F
  void* out;      // [T, F], which may be gate or value
  int64_t out_stride;
};

struct ActivationBackwardArgs {
  ActivationArgs forward;                        // `out` unused
  const void* grad;                              // [T, F]
  void *grad_gate, *grad_value, *grad_logits;    // [T, F], [T, F] or null, [B*N] of zeros or null
};

// Packed rows of two bins: [T] large rows, then [S] small rows again. Sample b's rows are cu_seqlens_large[b] and
// up; its small set is their beginning.
struct TwoBins {
  const void* weight_large;                      // [B], the small bin has 1 - weight_large
  const int32_t *cu_seqlens_large, *cu_seqlens_small;  // [B+1]
  int64_t rows;                                  // T
};

struct TwoBinGeluArgs {
  const void* pre;  // [T + S, F]
  TwoBins bins;
  int64_t width;  // F
  void* inner;    // [T, F]
};

struct TwoBinGeluBackwardArgs {
  TwoBinGeluArgs forward;  // `inner` unused
  const void* grad;        // [T, F]
  void *grad_pre, *weight_dots;  // [T + S, F], [T]
};

struct TwoBinBlendArgs {
  ScatterArgs scatter;  // hidden [T + S, D]
  TwoBins bins;
};

struct TwoBinBlendBackwardArgs {
  ScatterBackwardArgs scatter;
  TwoBins bins;
  void* weight_dots;  // [T]
};

struct Kernels {
  const char* instruction_set;  // what the compiler was told to use: "avx512", "avx2" or "baseline"
  void (*router_logits)(Element, const void* x, const void* weight, int64_t width, void* logits, int64_t begin,
                        int64_t end);
  void (*gather_adaln)(Element, const AdalnArgs&, int64_t begin, int64_t end);
  void (*gather_adaln_backward_rows)(Element, const AdalnBackwardArgs&, int64_t begin, int64_t end);
  void (*gather_adaln_backward_columns)(Element, const AdalnBackwardArgs&, int64_t begin, int64_t end);
  void (*qk_norm_rope)(Element, const QkNormRopeArgs&, int64_t begin, int64_t end);
  void (*gate_residual)(Element, const GateArgs&, int64_t begin, int64_t end);
  void (*gate_residual_backward_rows)(Element, const GateBackwardArgs&, int64_t begin, int64_t end);
  void (*gate_residual_backward_columns)(Element, const GateBackwardArgs&, int64_t begin, int64_t end);
  void (*scatter_rescale)(Element, const ScatterArgs&, int64_t begin, int64_t end);
  void (*scatter_rescale_backward_rows)(Element, const ScatterBackwardArgs&, int64_t begin, int64_t end);
  void (*scatter_rescale_backward_columns)(Element, const ScatterBackwardArgs&, int64_t begin, int64_t end);
  void (*activation)(Element, const ActivationArgs&, int64_t begin, int64_t end);
  void (*activation_backward)(Element, const ActivationBackwardArgs&, int64_t begin, int64_t end);
  void (*two_bin_gelu)(Element, const TwoBinGeluArgs&, int64_t begin, int64_t end);
  void (*two_bin_gelu_backward)(Element, const TwoBinGeluBackwardArgs&, int64_t begin, int64_t end);
  void (*two_bin_blend)(Element, const TwoBinBlendArgs&, int64_t begin, int64_t end);
  void (*two_bin_blend_backward_rows)(Element, const TwoBinBlendBackwardArgs&, int64_t begin, int64_t end);
};

// One table per instruction set; what the processor can do says which may run.
const Kernels& baseline_kernels();
#ifdef DIFFRATIO_X86_LEVELS
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace diffratio
