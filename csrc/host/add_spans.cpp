#include "host/add_spans.h"

#include <algorithm>

#include "host/rows.h"
#include "host/threads.h"

namespace spanbert::host {
namespace {

// Calls f(token, factor) for every token that a part of the span start .. end reads.
template <class T, class F>
void tokens_of(Part part, int64_t start, int64_t end, const F& f) {
  if (part == Part::start) return f(start, T(1));
  if (part == Part::end) return f(end - 1, T(1));
  const T factor = part == Part::mean ? T(1) / T(end - start) : T(1);
  for (int64_t token = start; token < end; ++token) f(token, factor);
}

}  // namespace

template <class T>
void add_spans(const T* tokens, int64_t size, const Spans& spans, const std::vector<Part>& parts, int64_t threads,
               T* output) {
  const int64_t row = size * int64_t(parts.size());
  share_rows(spans.count, std::min(threads, spans.count * row / MIN_SHARE), [&](int64_t n) {
    if (spans.ends[n] <= spans.starts[n]) return;
    for (size_t p = 0; p < parts.size(); ++p)
      tokens_of<T>(parts[p], spans.starts[n], spans.ends[n], [&](int64_t token, T factor) {
        add_scaled(output + n * size, tokens + token * row + int64_t(p) * size, factor, size);
      });
  });
}

template <class T>
void add_spans_backward(const T* grad_output, int64_t size, const Spans& spans, const std::vector<Part>& parts,
                        int64_t threads, T* grad_tokens) {
  const int64_t row = size * int64_t(parts.size());
  share_columns<T>(size, std::min(threads, spans.count * row / MIN_SHARE), [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < spans.count; ++n) {
      if (spans.ends[n] <= spans.starts[n]) continue;
      for (size_t p = 0; p < parts.size(); ++p)
        tokens_of<T>(parts[p], spans.starts[n], spans.ends[n], [&](int64_t token, T factor) {
          add_scaled(grad_tokens + token * row + int64_t(p) * size + begin, grad_output + n * size + begin, factor,
                     end - begin);
        });
    }
  });
}

template void add_spans(const float*, int64_t, const Spans&, const std::vector<Part>&, int64_t, float*);
template void add_spans(const double*, int64_t, const Spans&, const std::vector<Part>&, int64_t, double*);
template void add_spans_backward(const float*, int64_t, const Spans&, const std::vector<Part>&, int64_t, float*);
template void add_spans_backward(const double*, int64_t, const Spans&, const std::vector<Part>&, int64_t, double*);

}  // namespace spanbert::host
