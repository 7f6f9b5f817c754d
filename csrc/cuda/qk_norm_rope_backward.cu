#include "diffratio/qk_norm_rope_backward.cuh"

#include "heads.h"

namespace diffratio::cuda {

void qk_norm_rope_backward(const QkNormRopeBackwardArgs& b, Element element, Stream stream) {
  constexpr int n = kBackwardVector;
  const QkNormRopeArgs& a = b.forward;
  check_heads(a);
  if (a.count == 0) return;
  const int lanes = HeadItems<n>(a).lanes(), heads = std::max(a.query.heads, a.key.heads);
  const unsigned threads = a.across_heads ? threads_across(a, lanes) : kHeadThreads;
  const int64_t slices = a.across_heads ? ceil_div<int64_t>(a.count, kSliceRows)
                                        : ceil_div<int64_t>(a.count * heads, kSliceHeads);
  const bool vectors = vectors_of<n>(a) && all_aligned({b.grad, b.query.grad_x, b.key.grad_x});
  with_element(element, [&](auto zero) {
    with_bool(vectors, [&](auto kAligned) {
      with_bool(a.across_heads, [&](auto kAcross) {
        DIFFRATIO_LAUNCH((qk_norm_rope_backward_kernel<decltype(zero), kAligned.value, kAcross.value>),
                         dim3(static_cast<unsigned>(slices), 2), threads, static_cast<cudaStream_t>(stream), b, lanes);
      });
    });
  });
  check(cudaGetLastError(), "qk_norm_rope_backward");
}

}  // namespace diffratio::cuda
