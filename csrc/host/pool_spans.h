// Span pooling on plain arrays, forward and backward. No PyTorch and no Python in here.
#pragma once

#include <cstdint>
#include <vector>

namespace spanbert::host {

// In the order of PARTS in spanbert_kernels/host/checks.py.
enum class Part { start, end, mean, sum, max };

// N half-open spans of T tokens; one with `ends[n] <= starts[n]` has no token, the others lie in 0 .. T.
struct Spans {
  int64_t count;
  const int64_t *starts, *ends;
};

// `hidden` [T, size] to `output` [N, parts * size], a span's parts side by side. Zeros for a span without tokens.
template <class T>
void pool_spans(const T* hidden, int64_t size, const Spans& spans, const std::vector<Part>& parts, int64_t threads,
                T* output);

// The gradient of `hidden` [T, size], which comes zeroed, from that of the output. Columns are shared out, so that the
// sum at a token has one order, whatever the number of threads.
template <class T>
void pool_spans_backward(const T* grad_output, const T* hidden, int64_t size, const Spans& spans,
                         const std::vector<Part>& parts, int64_t threads, T* grad_hidden);

}  // namespace spanbert::host
