#include "diffratio/qk_norm_rope.cuh"

#include "heads.h"

namespace diffratio::cuda {

void qk_norm_rope(const QkNormRopeArgs& a, Element element, Stream stream) {
  check_heads(a);
  if (a.count == 0) return;
  with_element(element, [&](auto zero) {
    using T = decltype(zero);
    constexpr int n = kPerVector<T>;
    const int lanes = HeadItems<n>(a).lanes();
    const int64_t heads = a.count * (a.query.heads + 2 * a.key.heads);
    const unsigned threads = a.across_heads ? threads_across(a, lanes) : kHeadThreads;
    const int64_t blocks = a.across_heads ? 3 * a.count : ceil_div<int64_t>(heads, kHeadThreads / lanes);
    with_bool(vectors_of<n>(a), [&](auto kAligned) {
      with_bool(a.across_heads, [&](auto kAcross) {
        DIFFRATIO_LAUNCH((qk_norm_rope_kernel<T, kAligned.value, kAcross.value>),
                         dim3(static_cast<unsigned>(blocks)), threads, static_cast<cudaStream_t>(stream), a, lanes);
      });
    });
  });
  check(cudaGetLastError(), "qk_norm_rope");
}

}  // namespace diffratio::cuda
