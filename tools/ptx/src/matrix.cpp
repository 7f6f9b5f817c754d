// Matrix units: mma.sync, ldmatrix, stmatrix, and wgmma with its descriptors of shared memory.
//
// Sums are exact but for roundings of fp64, then rounded once to fp32: how hardware adds is not published.
#include <algorithm>
#include <cstring>

#include "decode.h"

namespace ptx {

static float to_single(double x, bool truncate) {
  float f = static_cast<float>(x);
  if (truncate && std::isfinite(f) && std::fabs(static_cast<double>(f)) > std::fabs(x))
    f = std::bit_cast<float>(std::bit_cast<u32>(f) - 1);
  return canonical(f);
}
template <class T>
static double low(u32 pair) {
  return value(T{static_cast<u16>(pair)});
}
template <class T>
static double high(u32 pair) {
  return value(T{static_cast<u16>(pair >> 16)});
}

// Fragments: lane l holds row l / 4 and columns 2 (l % 4) and the next of every 8 x 8. Those of A go down, then right.
template <class T>
static void unpack_a(double (*a)[16], const u32* const* registers, int count) {
  for (int n = 0; n < count; n++)
    for (int l = 0; l < 32; l++) {
      int row = l / 4 + 8 * (n & 1), column = 2 * (l % 4) + 8 * (n / 2);
      a[row][column] = low<T>(registers[n][l]);
      a[row][column + 1] = high<T>(registers[n][l]);
    }
}

// mma.m16n8kK: [16, K] x [K, 8] + [16, 8]. list: registers of D (4), A (K/4), B (K/8), C (4); count: K.
template <class T>
void mma(Warp& w, const Instruction& i) {
  if (!w.together(i)) return;
  if (w.mask != ALL) w.fail(i, -1, "mma with part of a warp");
  int K = i.count;
  double a[16][16], b[16][8], c[16][8];
  const Place *to = i.list.data(), *of_a = to + 4, *of_b = of_a + K / 4, *of_c = of_b + K / 8;
  const u32* left[4];
  for (int n = 0; n < K / 4; n++) left[n] = w.lanes<u32>(of_a[n]);
  unpack_a<T>(a, left, K / 4);
  for (int n = 0; n < K / 8; n++)
    for (int l = 0; l < 32; l++) {
      u32 pair = w.lanes<u32>(of_b[n])[l];
      int row = 2 * (l % 4) + 8 * n, column = l / 4;
      b[row][column] = low<T>(pair);
      b[row + 1][column] = high<T>(pair);
    }
  auto place = [](int n, int l) { return std::pair{l / 4 + 8 * (n / 2), 2 * (l % 4) + n % 2}; };
  for (int n = 0; n < 4; n++)
    for (int l = 0; l < 32; l++) {
      auto [row, column] = place(n, l);
      c[row][column] = w.lanes<float>(of_c[n])[l];
    }
  for (int m = 0; m < 16; m++) {
    double sums[8] = {};
    for (int k = 0; k < K; k++)
      for (int n = 0; n < 8; n++) sums[n] += a[m][k] * b[k][n];
    for (int n = 0; n < 8; n++) c[m][n] += sums[n];
  }
  for (int n = 0; n < 4; n++)
    for (int l = 0; l < 32; l++) {
      auto [row, column] = place(n, l);
      w.lanes<float>(to[n])[l] = to_single(c[row][column], w.block->launch.truncate);
    }
}

// ldmatrix, stmatrix: 8 x 8 matrices of 16 bits; lane 8 m + r names the 16 bytes of row r of matrix m.
template <bool STORES, bool TRANSPOSED>
void move_matrices(Warp& w, const Instruction& i) {
  if (!w.together(i)) return;
  if (w.mask != ALL) w.fail(i, -1, "ldmatrix or stmatrix with part of a warp");
  Shared& shared = w.block->shared;
  char* rows[32];
  for (int l = 0; l < 8 * static_cast<int>(i.list.size()); l++) {
    u64 base = i.address_bytes == 4 ? w.lanes<u32>(i.in[0])[l] : w.lanes<u64>(i.in[0])[l];
    rows[l] = shared.at(w, i, l, base + static_cast<u64>(i.offset), 16, 16);
  }
  for (size_t m = 0; m < i.list.size(); m++) {
    u16 matrix[8][8];
    u32* fragment = w.lanes<u32>(i.list[m]);
    auto element = [&](int l, int half) -> u16& {
      int row = l / 4, column = 2 * (l % 4) + half;
      return TRANSPOSED ? matrix[column][row] : matrix[row][column];
    };
    for (int r = 0; r < 8 && !STORES; r++) {
      int lane = static_cast<int>(8 * m) + r;
      shared.reading(w, i, lane, rows[lane], 16);
      std::memcpy(matrix[r], rows[lane], 16);
    }
    for (int l = 0; l < 32; l++) {
      if (STORES) element(l, 0) = static_cast<u16>(fragment[l]), element(l, 1) = static_cast<u16>(fragment[l] >> 16);
      else fragment[l] = element(l, 0) | static_cast<u32>(element(l, 1)) << 16;
    }
    for (int r = 0; r < 8 && STORES; r++) {
      int lane = static_cast<int>(8 * m) + r;
      shared.writing(w, i, lane, rows[lane], 16, Shared::STORE, matrix[r]);
      std::memcpy(rows[lane], matrix[r], 16);
    }
  }
}

// ---- wgmma.m64nNk16: [64, 16] x [16, N]. Each warp of a warpgroup computes 16 rows, in its own time.

// Where a matrix lies in shared memory: blocks of 8 rows of 16, 32, 64 or 128 bytes, whose units of 16 bytes are
// exchanged by the bits of the address that count 128 bytes.
struct Descriptor {
  u32 start, leading, stride, swizzle;  // bytes; swizzle: 0 none, 1: 128, 2: 64, 3: 32 bytes
  explicit Descriptor(u64 bits)
      : start(field(bits, 0)), leading(field(bits, 16)), stride(field(bits, 32)), swizzle(static_cast<u32>(bits >> 62)) {}
  static u32 field(u64 bits, int at) { return static_cast<u32>(bits >> at & 0x3FFF) << 4; }

  // 8 elements beside each other, along K if `k_major`, else along M or N. row: along M or N.
  u32 unit(int row, int k, bool k_major) const {
    u32 units = swizzle == 0 ? 1 : 16u >> swizzle, r = static_cast<u32>(row), c = static_cast<u32>(k), at;
    if (k_major) {
      at = start + r / 8 * stride + r % 8 * 16 * units + (swizzle ? c / 8 * 16 : c / 8 * leading);
    } else if (swizzle) {
      at = start + c % 8 * 16 * units + r / 8 % units * 16 + r / 8 / units * leading + c / 8 * stride;
    } else {
      at = start + c % 8 * 16 + r / 8 * stride + c / 8 * leading;
    }
    u32 exchanged = swizzle == 0 ? 0 : (1u << (4 - swizzle)) - 1;
    return at ^ (at >> 7 & exchanged) << 4;
  }
};

// `count` rows from `first` on and 16 columns of K; put(row, k, number).
template <class T, class F>
static void read_matrix(Warp& w, const Instruction& i, u64 bits, int first, int count, bool k_major, F put) {
  Descriptor descriptor(bits);
  if (bits >> 49 & 7) w.fail(i, -1, "a matrix descriptor with a base offset is not known");
  Shared& shared = w.block->shared;
  auto unit = [&](int row, int k) {
    char* p = shared.at(w, i, -1, descriptor.unit(row, k, k_major), 16, 16);
    shared.reading_by_matrix_unit(w, i, p, 16, w.block->counts);
    return reinterpret_cast<const T*>(p);
  };
  for (int row = 0; row < count; row += k_major ? 1 : 8)
    for (int k = 0; k < 16; k += k_major ? 8 : 1) {
      const T* from = unit(first + row, k);
      for (int e = 0; e < 8; e++) put(row + (k_major ? 0 : e), k + (k_major ? e : 0), value(from[e]));
    }
}

enum WgmmaFlag : u8 { A_TRANSPOSED = 1, B_TRANSPOSED = 2, NEGATIVE = 4, BF16 = 8 };
// list: registers of D (N/2), then of A if it comes from registers; count: N / 8.
template <class T>
static void multiply(Warp& w, const Instruction& i, const Product& p, float* const* d) {
  int N = i.count * 8;
  alignas(64) double a[16][16], b[16 * 256], sums[8];
  if (p.fragment.empty()) {
    read_matrix<T>(w, i, p.a, 16 * (w.id % 4), 16, !(i.flags & A_TRANSPOSED), [&](int m, int k, float x) { a[m][k] = x; });
  } else {
    const u32* left[4];
    for (int n = 0; n < 4; n++) left[n] = &p.fragment[static_cast<size_t>(32 * n)];
    unpack_a<T>(a, left, 4);
  }
  read_matrix<T>(w, i, p.b, 0, N, !(i.flags & B_TRANSPOSED), [&](int n, int k, float x) { b[k * N + n] = x; });
  double sign = i.flags & NEGATIVE ? -1 : 1;
  for (int n0 = 0; n0 < N; n0 += 8)
    for (int m = 0; m < 16; m++) {
      for (double& sum : sums) sum = 0;
      for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8; n++) sums[n] += a[m][k] * b[k * N + n0 + n];
      for (int n = 0; n < 8; n++) {
        float& to = d[n0 / 2 + 2 * (m / 8) + n % 2][4 * (m % 8) + n / 2];
        to = to_single(sign * sums[n] + (p.accumulate ? to : 0.0), w.block->launch.truncate);
      }
    }
  w.products_done++;
}
static void run_product(Warp& w, const Product& p, bool in_flight) {
  const Instruction& i = *p.instruction;
  size_t count = static_cast<size_t>(i.count) * 4;
  float* d[128];
  for (size_t n = 0; n < count; n++) d[n] = in_flight ? w.accumulators.at(i.list[n]).data() : w.lanes<float>(i.list[n]);
  // Undefined in PTX. ptxas does not let it happen where it sees it, so that it is only counted.
  for (size_t n = 0; n < p.fragment.size() / 32; n++)
    w.block->counts.overwritten += std::memcmp(w.lanes<u32>(i.list[count + n]), &p.fragment[32 * n], 128) != 0;
  i.flags & BF16 ? multiply<BFloat>(w, i, p, d) : multiply<Half>(w, i, p, d);
}

// The products of the groups before `group` are done; registers that no other product will write get their values.
static void finish_products(Warp& w, u32 group) {
  auto open = std::find_if(w.products.begin(), w.products.end(), [=](auto& p) { return p.group >= group; });
  for (auto p = w.products.begin(); p != open; p++) run_product(w, *p, true);
  w.products.erase(w.products.begin(), open);
  for (auto at = w.accumulators.begin(); at != w.accumulators.end();) {
    bool awaited = std::any_of(w.products.begin(), w.products.end(), [&](auto& p) {
      auto end = p.instruction->list.begin() + p.instruction->count * 4;
      return std::find(p.instruction->list.begin(), end, at->first) != end;
    });
    if (awaited) {
      at++;
      continue;
    }
    const vector<float>& values = at->second;
    std::copy(values.begin(), values.end(), w.lanes<float>(at->first));
    for (auto& [to, from] : w.moved)
      for (size_t l = 0; l < 32 && from == at->first; l++)  // where nothing else has been written since
        if (w.lanes<u32>(to)[l] == POISON32) w.lanes<float>(to)[l] = values[l];
    std::erase_if(w.moved, [&](auto& m) { return m.second == at->first; });
    at = w.accumulators.erase(at);
  }
}

// A register in flight is moved to another one. Undefined in PTX, but what LLVM makes of Triton's waits; ptxas gives
// both the same register, and the wait covers it. So it is here; and counted.
void move_in_flight(Warp& w, Place to, Place from) {
  if (auto m = w.moved.find(from); m != w.moved.end()) from = m->second;
  w.moved.erase(to);
  if (!w.accumulators.count(from) || w.mask != ALL) return;
  w.moved[to] = from;
  w.block->counts.moved++;
}

static void wgmma(Warp& w, const Instruction& i) {  // in: descriptors of A and B, whether to accumulate
  if (!w.together(i)) return;
  if (w.mask != ALL || w.block->warps.size() % 4) w.fail(i, -1, "wgmma without a whole warpgroup");
  if (!w.registers_fenced) w.fail(i, -1, "wgmma without a wgmma.fence before it");
  auto uniform = [&](Place place) {
    const u64* lanes = w.lanes<u64>(place);
    for (int l = 1; l < 32; l++)
      if (lanes[l] != lanes[0]) w.fail(i, l, "a matrix descriptor that differs within the warp");
    return lanes[0];
  };
  u32 accumulate = w.predicate(i.in[2]);
  if (accumulate != 0 && accumulate != ALL) w.fail(i, -1, "scale-d differs within the warp");
  size_t count = static_cast<size_t>(i.count) * 4;
  Product p = {&i, i.in[0] ? uniform(i.in[0]) : 0, uniform(i.in[1]), accumulate != 0, w.product_group, {}};
  for (size_t n = count; n < i.list.size(); n++) {
    const u32* lanes = w.lanes<u32>(i.list[n]);
    p.fragment.insert(p.fragment.end(), lanes, lanes + 32);
  }
  if (w.products.empty() && !w.block->late(w.block->launch.products)) return run_product(w, p, false);
  for (size_t n = 0; n < count; n++) {
    Place place = i.list[n];
    if (std::any_of(w.moved.begin(), w.moved.end(), [=](auto& m) { return m.second == place; }))
      w.fail(i, -1, "writes an accumulator that was moved in flight");
    float* lanes = w.lanes<float>(place);
    auto [at, fresh] = w.accumulators.try_emplace(place);
    if (fresh) at->second.assign(lanes, lanes + 32);
    std::fill_n(w.lanes<u32>(place), 32, POISON32);
  }
  w.products.push_back(std::move(p));
}
static void wgmma_fence(Warp& w, const Instruction& i) {
  if (w.together(i)) w.registers_fenced = true;
}
static void wgmma_commit(Warp& w, const Instruction& i) {
  if (w.together(i)) w.product_group++;
}
static void wgmma_wait(Warp& w, const Instruction& i) {
  u32 keep = static_cast<u32>(i.number);
  if (w.together(i) && w.product_group > keep) finish_products(w, w.product_group - keep);
}

// ---- decoding

static void take_registers(Decoder& d, const string& operand, Instruction& i) {
  for (auto& name : elements(operand)) i.list.push_back(d.operand(name, 4));
}

static bool decode_mma(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  auto shape = form.take_one({"m16n8k16", "m16n8k8"});
  if (shape.empty() || !form.take("sync") || !form.take("aligned") || !form.take("row") || !form.take("col")) return false;
  Type c = form.take_type(), b = form.take_type(), a = form.take_type(), out = form.take_type();
  if (out.kind != 'f' || c.kind != 'f' || a.kind != b.kind) return false;
  i.count = shape == "m16n8k16" ? 16 : 8;
  for (auto& operand : operands) take_registers(d, operand, i);
  if (i.list.size() != 8u + i.count / 4 + i.count / 8) d.error("operands of mma");
  i.execute = a.kind == 'h' ? mma<Half> : a.kind == 'y' ? mma<BFloat> : nullptr;
  return i.execute;
}

static bool decode_rows(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  bool stores = form.name() == "stmatrix", transposed = form.take("trans");
  if (!form.take("sync") || !form.take("aligned") || !form.take("m8n8") || !form.take("b16")) return false;
  if (form.take_one({"shared", "shared::cta"}).empty()) return false;
  auto count = form.take_one({"x1", "x2", "x4"});
  d.address(operands.at(stores ? 0 : 1), i, i.in[0]);
  take_registers(d, operands.at(stores ? 1 : 0), i);
  if (count != format("x%zu", i.list.size())) d.error("another number of matrices");
  i.execute = stores ? transposed ? move_matrices<true, true> : move_matrices<true, false>
                     : transposed ? move_matrices<false, true> : move_matrices<false, false>;
  return true;
}

static bool decode_wgmma(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  if (!form.take("sync") || !form.take("aligned")) return false;
  if (form.take("fence")) return i.execute = wgmma_fence, true;
  if (form.take("commit_group")) return i.execute = wgmma_commit, true;
  if (form.take("wait_group")) return i.number = integer(operands.at(0)), i.execute = wgmma_wait, true;
  Type b = form.take_type(), a = form.take_type(), out = form.take_type();
  if (!form.take("mma_async") || out.kind != 'f' || a.kind != b.kind || (a.kind != 'h' && a.kind != 'y')) return false;
  for (int n = 8; n <= 256 && !i.count; n += 8)
    if (form.take(format("m64n%dk16", n))) i.count = static_cast<u8>(n / 8);
  if (!i.count) return false;
  take_registers(d, operands.at(0), i);
  if (i.list.size() != i.count * 4u) d.error("another number of accumulators");
  bool in_registers = operands.at(1).starts_with('{');
  if (in_registers) take_registers(d, operands[1], i);
  else i.in[0] = d.operand(operands[1], 8);
  i.in[1] = d.operand(operands.at(2), 8);
  i.in[2] = d.operand(operands.at(3), 0);
  bool negative = (integer(operands.at(4)) < 0) != (integer(operands.at(5)) < 0);
  bool a_transposed = !in_registers && integer(operands.at(6)), b_transposed = integer(operands.at(in_registers ? 6 : 7));
  i.flags = static_cast<u8>((a_transposed ? A_TRANSPOSED : 0) | (b_transposed ? B_TRANSPOSED : 0) |
                            (negative ? NEGATIVE : 0) | (a.kind == 'y' ? BF16 : 0));
  return i.execute = wgmma, true;
}

bool decode_matrix(Decoder& d, Form& form, const Operands& operands, Instruction& i) {
  const string& name = form.name();
  if (name == "mma") return decode_mma(d, form, operands, i);
  if (name == "ldmatrix" || name == "stmatrix") return decode_rows(d, form, operands, i);
  return name == "wgmma" && decode_wgmma(d, form, operands, i);
}

}  // namespace ptx
