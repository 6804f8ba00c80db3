// Span pooling on a CPU.
//
// Spans come sorted by first token, then by width. Spans that start together are nested, so each continues the running
// sum, maximum and online softmax (Milakov and Gimelshein 2018) of the one before: a token is read once per group
// instead of once per span, and all spans up to a width cost O(1) a span. The order of the additions is that of the
// span's own tokens, so a result does not depend on which other spans are there.
//
// That pays where spans that start together are many. Sums and maxima of other spans are put together from blocks of
// tokens at fixed places: the end of the block that a span starts in, whole blocks, the beginning of the block that it
// ends in. All three are running values inside a block, kept for a window of tokens, so a span costs a few rows however
// wide it is, and nothing is subtracted (differences of prefix sums over the batch would lose digits).
//
// The backward walks a group from its widest span down. A token receives the sum of the gradients of the spans that
// reach it, a suffix sum that grows as the walk goes left:
//   d hidden[t] = sum of g_n over spans n with end_n > t                    (sum; mean with 1/width)
//   d hidden[t] = sum of exp(s_t - m_n) / z_n g_n = exp(s_t - m) A, A = sum of exp(m - m_n) / z_n g_n      (attention)
//   d s[t]      = exp(s_t - m) (A . x_t - B),                       B = sum of exp(m - m_n) / z_n (g_n . out_n)
// B is made of out_n before it is rounded: the forward of a group's tokens is run again for it.
// where m_n and z_n are a softmax's maximum and sum, and m is the maximum of the narrowest span passed so far. Wider
// spans have larger ones, so no factor exceeds 1; log-sum-exps would do, but their rounding would be in every weight.
// The maximum's gradient goes to the first maximal token: the forward is run again and what has gathered for a token is
// handed over when a larger one replaces it. Every column tile is one task, so no two tasks write to the same place.

#include "span_pool/cpu_backward.h"
#include "span_pool/cpu_forward.h"

namespace spanbert {
namespace SPANBERT_ISA {

void span_pool_forward(const SpanPoolCall& call, int64_t first, int64_t last) {
  with_storage(call.storage, [&](auto s) { Forward<decltype(s)>(call).run(first, last); });
}

void span_pool_backward(const SpanPoolCall& call, const SpanPoolGrads& grads, int64_t tile, int64_t first,
                        int64_t last) {
  with_storage(call.storage, [&](auto s) { Backward<decltype(s)>(call, grads, tile).run(first, last); });
}

void span_pool_table_backward(const SpanPoolCall& call, const SpanPoolGrads& grads) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    Backward<S>(call, grads, 0).walk_table(static_cast<typename Accumulator<S>::type*>(grads.table));
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
