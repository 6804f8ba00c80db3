// The backward of span gathering on a CPU: every token's gradient is the sum of the rows that it was copied to, in
// their order (LongSums), so a result depends neither on the number of threads nor on how the columns are tiled. Each
// row is read once.

#include <algorithm>
#include <cstring>

#include "common/sums.h"
#include "span_gather/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

template <class S>
void add_rows(const SpanGatherGrads& grads, int64_t first, int64_t last, int64_t left, int64_t right) {
  using A = typename Accumulator<S>::type;
  constexpr int kLanes = lanes<A>;
  const int64_t width = right - left;
  LongSums<A> sums(1, width);
  const S* output = static_cast<const S*>(grads.output) + left;
  S* hidden = static_cast<S*>(grads.hidden) + left;
  const auto each = [&](const auto& f) {
    for (int64_t c = 0; c < width; c += kLanes) f(c, static_cast<int>(std::min<int64_t>(kLanes, width - c)));
  };
  for (int64_t t = first; t < last; ++t) {
    sums.clear(0);
    for (int64_t i = grads.begin[t]; i < grads.begin[t + 1]; ++i) {
      const S* row = output + grads.sources[i] * grads.output_stride;
      A* const to = sums.next(0);
      each([&](int64_t c, int n) {
        // A span's next row is that of the next token.
        __builtin_prefetch(row + grads.output_stride + c);
        store_up_to(to + c, load_up_to(to + c, n) + load_up_to(row + c, n), n);
      });
    }
    S* to = hidden + t * grads.columns;
    const A* sum = sums.sum(0);
    each([&](int64_t c, int n) { store_up_to(to + c, load_up_to(sum + c, n), n); });
  }
}

}  // namespace

void span_gather_copy(void* to, const void* from, int64_t bytes, bool past_caches) {
  constexpr int64_t multiple = kStreamBytes ? kStreamBytes : 1;
  if (past_caches && kStreamBytes != 0 && (reinterpret_cast<uintptr_t>(to) | bytes) % multiple == 0) {
    stream_bits(to, from, bytes);
    streamed();
  } else {
    std::memcpy(to, from, bytes);
  }
}

void span_gather_backward(const SpanGatherGrads& grads, int64_t first, int64_t last, int64_t left, int64_t right) {
  with_storage(grads.storage, [&](auto s) { add_rows<decltype(s)>(grads, first, last, left, right); });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
