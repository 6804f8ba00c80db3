// Sums over spans of what was projected of each token: the second half of "project, then pool". No Python in here.
#pragma once

#include <cstdint>
#include <vector>

#include "host/pool_spans.h"

namespace spanbert::host {

// Adds the parts of each span, all but `max`, to `output` [N, size]. A token's projections for the parts stand side by
// side: `tokens` [T, parts * size].
template <class T>
void add_spans(const T* tokens, int64_t size, const Spans& spans, const std::vector<Part>& parts, int64_t threads,
               T* output);

// The gradient of `tokens` [T, parts * size], which comes zeroed, from that of the output.
template <class T>
void add_spans_backward(const T* grad_output, int64_t size, const Spans& spans, const std::vector<Part>& parts,
                        int64_t threads, T* grad_tokens);

}  // namespace spanbert::host
