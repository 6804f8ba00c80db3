// Layers behind pooled spans, row by row: the largest of some pieces, and normalisation. No Python in here.
#pragma once

#include <cstdint>

namespace spanbert::host {

// Of each `pieces` numbers of `input` [rows, size * pieces] plus `bias` [size * pieces] the first largest one, or the
// first NaN, to `best` [rows, size], and which of them it is to `which`.
template <class T>
void maxout(const T* input, const T* bias, int64_t rows, int64_t size, int64_t pieces, int64_t threads, T* best,
            int32_t* which);

// Rows less their mean, over the root of their variance plus `epsilon`, times `gain` plus `shift`; `mean` and
// `inverse`, of that root, are kept for the backward, [rows].
template <class T>
void layer_norm(const T* input, const T* gain, const T* shift, int64_t rows, int64_t size, T epsilon, int64_t threads,
                T* output, T* mean, T* inverse);

// The gradients of `input`, and of `gain` and `shift`, which come zeroed and whose columns are shared out, so that sums
// have one order.
template <class T>
void layer_norm_backward(const T* grad_output, const T* input, const T* gain, const T* mean, const T* inverse,
                         int64_t rows, int64_t size, int64_t threads, T* grad_input, T* grad_gain, T* grad_shift);

}  // namespace spanbert::host
