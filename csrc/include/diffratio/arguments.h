// What the CUDA kernels are given: raw pointers and sizes, no torch, no CUDA header.
//
// Letters: B samples, N tokens, D width, T packed rows. Packed row t is row index[t] of the flattened [B*N]
// and belongs to sample index[t] / N; every row occurs at most once in index. Modulation vectors and logits
// are float; row b of a modulation vector starts at b * stride, its columns follow each other. A row's modulation is
// that of its sample or, with groups [B*N], row groups[index[t]] of G.
#pragma once

#include <cstdint>

namespace diffratio::cuda {

// Storage type of x and everything shaped like it.
enum class Element : int { kFloat, kBFloat16, kHalf };

// What the router score multiplies (see scatter_rescale.cuh).
enum class Rescale : int { kMlp, kResidual, kOutput, kNone };

enum class Norm : int { kNone, kRms, kLayer };

// The norm of a row.
struct RowNorm {
  Norm kind;           // kNone: the row as it is
  const float *weight, *bias;  // [D] or null
  float eps;

  bool any() const { return kind != Norm::kNone; }
};

struct Modulation {
  const float* values;  // [B, D]
  int64_t stride;
};

struct RouterLogitsArgs {
  const void* x;        // [rows, D]
  const float* weight;  // [D]
  const float* bias;    // [1] or null
  int64_t rows, width;
  float* logits;  // [rows]
};

// Which rows of x have which of G rows of the modulation.
struct Groups {
  const int64_t* of_row;  // [B*N], null where each sample has its own
  const int64_t* order;   // [B*N] rows of x by group
  const int64_t* bounds;  // [G+1] places in `order` at which each group begins and ends; null without groups
  int64_t count;          // G
};

// Sums over the rows of each sample, or group, in two steps (see column_sums.cuh and group_sums.cuh).
struct ColumnSums {
  const int32_t* place;  // [B*N] packed row of each row of x, -1 where none; null to sum over all rows
  int64_t samples, tokens, width;
  float* partial;  // [ceil(N / 256), sums, B, D]; equal to `sums` where the first size is 1
  float* sums;     // [sums, B, D]
  Groups groups;   // with groups partial is [ceil(B*N / 32) + G, sums, D], sums [sums, G, D]
};

struct RouterLogitsBackwardArgs {
  const float* grad_logits;  // [rows]
  const void* x;             // [rows, D]
  const float* weight;       // [D]
  void* grad_x;              // [rows, D]
  ColumnSums columns;        // sum of weight, over one sample of all rows
};

struct TopkArgs {
  const float* logits;        // [B, N]
  int64_t keep;               // of every sample; -1 where `offsets` says it
  int32_t* offsets;           // [B+1]: sample b keeps offsets[b+1] - offsets[b] tokens; written unless keep is -1
  const int32_t* keep_small;  // [B] or null: so many of them come first
  int64_t samples, tokens;
  int64_t* index;  // [T]
  int32_t* place;  // [B*N] packed row of each token, -1 where it is not kept; or null
};

struct PlacesArgs {
  const int64_t* index;  // [T]
  int64_t count;
  int32_t* place;  // [B*N], all -1
};

struct AdalnArgs {
  const void* x;         // [B*N, D] with gather, else [T, D]
  const int64_t* index;  // [T]
  int64_t count, tokens, width;
  bool gather;  // packed row t is row index[t] of x
  Modulation shift, scale;
  float eps;
  void* rows;    // [T, D] copy of the packed rows, or null
  void* normed;  // [T, D]
  Norm norm;
  const int64_t* groups;  // [B*N] or null
};

struct AdalnBackwardArgs {
  const void* rows;      // [T, D] input of the norm
  const int64_t* index;  // [T]
  int64_t count;
  bool gather;  // rows were gathered from x
  Modulation scale;
  const void* grad_rows;    // [T, D] or null
  const void* grad_normed;  // [T, D]
  float eps;
  void* grad_x;        // [B*N, D] with gather, else [T, D]
  float* stats;        // [T, 2] mean and 1/std, written by the row pass, read by the column pass
  ColumnSums columns;  // sums of shift and scale
  Norm norm;
};

// Heads of one tensor: H of the query, h of key and value, each of d channels.
struct HeadsArgs {
  const void* x;  // [T, heads d]
  int64_t stride;
  int heads;
  const void *weight, *bias;  // [d], across heads [heads d], or null
};

struct QkNormRopeArgs {
  HeadsArgs query, key, value;
  const int64_t* index;  // [T]
  int64_t count, tokens;
  int width;  // d
  Norm norm;
  bool across_heads, wide_weights;  // weights and biases are float, or like x
  float eps;
  const float *cos, *sin;  // [1 or B, N, 1 or H, pairs] or null
  int table_heads, pairs;
  bool table_by_sample, halves;
  const int32_t* shift;  // [B] or null: row t is written to row t + shift of its sample
  void* out;             // [.., H + 2h, d]
};

struct HeadsGradients {
  void* grad_x;          // [T, heads d]
  float *weight, *bias;  // sums of each slice [slices, d], across heads [slices, heads d], or null
};

struct QkNormRopeBackwardArgs {
  QkNormRopeArgs forward;  // without value, shift and out
  const void* grad;        // [T, H + 2h, d]
  HeadsGradients query, key;
};

// What an MLP has between its products, of a gated one act(gate) * value.
enum class Activation : int { kGeluTanh, kGelu, kSilu };

struct ActivationArgs {
  Activation kind;
  const void *gate, *value;  // [T, F]; value may be null
  int64_t gate_stride, value_stride;
  const int64_t* index;  // [T] or null
  const float* logits;   // [B*N] or null: no scores
  float score_scale;
  int64_t rows, width;
  void* out;  // [T, F]; may be gate or value
  int64_t out_stride;
};

struct ActivationBackwardArgs {
  ActivationArgs forward;         // `out` unused
  const void* grad;               // [T, F]
  void *grad_gate, *grad_value;   // [T, F]; grad_value is null without value
  float* grad_logits;             // [B*N] of zeros, or null
};

struct GateResidualArgs {
  const void *hidden, *branch;  // [T, D]
  Modulation gate;
  const int64_t* index;  // [T]
  int64_t count, tokens, width;
  const int64_t* groups;  // [B*N] or null
  RowNorm norm;
  void* out;  // [T, D]; may be hidden
};

struct GateResidualBackwardArgs {
  GateResidualArgs forward;  // `hidden` and `out` unused
  const void* grad_out;      // [T, D]
  void* grad_branch;         // [T, D]
  float* stats;              // [T, 2] mean and 1/std of the branch, written where it is normed
  ColumnSums columns;        // sums of gate (GateTerms)
};

struct ScatterArgs {
  const void* x;         // [B*N, D]
  const int32_t* place;  // [B*N], or null to touch the rows of index only
  const int64_t* index;  // [T], or null with place
  int64_t rows;          // B*N with place, T with index
  int64_t tokens, width;
  const void *hidden, *branch;  // [T, D]
  Modulation gate;
  const float* logits;  // [B*N]
  Rescale rescale;
  float score_scale;
  void* out;  // [B*N, D]; may be x itself with index
};

// What `scatter_rescale` has besides in some families.
struct ScatterMore {
  RowNorm norm;
  const int64_t* groups;  // [B*N] or null
  float* stats;           // [T, 2] mean and 1/std of the branch, written by the backward pass where it is normed
};

struct ScatterBackwardArgs {
  ScatterArgs forward;                       // with place; `out` unused
  const void* grad_out;                      // [B*N, D]
  void *grad_x, *grad_hidden, *grad_branch;  // like x, hidden, branch
  float* grad_logits;                        // [B*N]
  ColumnSums columns;                        // sums of gate (GateTerms)
};

// The packed rows of two bins: those of the large bin [T], sample after sample, each sample's small set first.
// Tensors of both bins have T + S rows: after the large rows, those of the small bins of all samples.
struct Bins {
  const float* weight_large;  // [B]; the small bin has the rest of 1
  const int32_t *cu_seqlens_large, *cu_seqlens_small;  // [B+1]
  int64_t samples, rows;                         // B, T
};

struct TwoBinGeluArgs {
  Bins bins;
  int64_t width;
  const void* pre;  // [T+S, F]
  void* inner;      // [T, F]
};

struct TwoBinGeluBackwardArgs {
  Bins bins;
  int64_t width;
  const void *grad, *pre;  // [T, F], [T+S, F]
  void* grad_pre;          // [T+S, F]
  float* weight_dots;      // [T]
};

struct TwoBinBlendArgs {
  ScatterArgs scatter;  // with place; hidden is [T+S, D]
  Bins bins;
};

struct TwoBinBlendBackwardArgs {
  TwoBinBlendArgs forward;                   // `out` unused
  const void* grad_out;                      // [B*N, D]
  void *grad_x, *grad_hidden, *grad_branch;  // like x, hidden, branch
  float *grad_logits, *weight_dots;          // [B*N], [T]
  ColumnSums columns;                        // sum of gate
};

}  // namespace diffratio::cuda
