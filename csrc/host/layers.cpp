#include "host/layers.h"

#include <algorithm>
#include <cmath>

#include "host/rows.h"
#include "host/threads.h"

namespace spanbert::host {
namespace {

// The sum of term(0) .. term(count - 1), in as many parts as let a compiler use vectors.
template <class T, class F>
T sum(int64_t count, const F& term) {
  constexpr int64_t lanes = 64 / int64_t(sizeof(T));
  T parts[lanes] = {};
  int64_t c = 0;
  for (; c + lanes <= count; c += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane) parts[lane] += term(c + lane);
  for (; c < count; ++c) parts[0] += term(c);
  for (int64_t half = lanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  return parts[0];
}

}  // namespace

template <class T>
void maxout(const T* input, const T* bias, int64_t rows, int64_t size, int64_t pieces, int64_t threads, T* best,
            int32_t* which) {
  constexpr int64_t block = 64;
  const int64_t columns = size * pieces;
  share_rows(rows, std::min(threads, rows * columns / MIN_SHARE), [&](int64_t row) {
    T values[block];
    for (int64_t first = 0; first < size; first += block) {
      const int64_t count = std::min(block, size - first);
      const T *from = input + row * columns + first * pieces, *added = bias + first * pieces;
      T* kept = best + row * size + first;
      int32_t* places = which + row * size + first;
      for (int64_t c = 0; c < count; ++c) kept[c] = from[c * pieces] + added[c * pieces];
      std::fill(places, places + count, 0);
      for (int32_t piece = 1; piece < pieces; ++piece) {
        for (int64_t c = 0; c < count; ++c) values[c] = from[c * pieces + piece] + added[c * pieces + piece];
        keep_largest(kept, places, piece, values, count);
      }
    }
  });
}

template <class T>
void layer_norm(const T* input, const T* gain, const T* shift, int64_t rows, int64_t size, T epsilon, int64_t threads,
                T* output, T* mean, T* inverse) {
  share_rows(rows, std::min(threads, rows * size / MIN_SHARE), [&](int64_t row) {
    const T* from = input + row * size;
    T* to = output + row * size;
    const T middle = sum<T>(size, [&](int64_t c) { return from[c]; }) / T(size);
    const T variance = sum<T>(size, [&](int64_t c) { return (from[c] - middle) * (from[c] - middle); }) / T(size);
    const T factor = T(1) / std::sqrt(variance + epsilon);
    for (int64_t c = 0; c < size; ++c) to[c] = (from[c] - middle) * factor * gain[c] + shift[c];
    mean[row] = middle;
    inverse[row] = factor;
  });
}

template <class T>
void layer_norm_backward(const T* grad_output, const T* input, const T* gain, const T* mean, const T* inverse,
                         int64_t rows, int64_t size, int64_t threads, T* grad_input, T* grad_gain, T* grad_shift) {
  const int64_t workers = std::min(threads, rows * size / MIN_SHARE);
  share_rows(rows, workers, [&](int64_t row) {
    const T *grad = grad_output + row * size, *from = input + row * size;
    T* to = grad_input + row * size;
    const T middle = mean[row], factor = inverse[row];
    const T all = sum<T>(size, [&](int64_t c) { return grad[c] * gain[c]; }) / T(size);
    const T along = sum<T>(size, [&](int64_t c) { return grad[c] * gain[c] * (from[c] - middle); });
    const T slope = along * factor * factor / T(size);
    for (int64_t c = 0; c < size; ++c) to[c] = (grad[c] * gain[c] - all - (from[c] - middle) * slope) * factor;
  });
  share_columns<T>(size, workers, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; ++row) {
      const T *grad = grad_output + row * size, *from = input + row * size;
      const T middle = mean[row], factor = inverse[row];
      for (int64_t c = begin; c < end; ++c) {
        grad_gain[c] += grad[c] * (from[c] - middle) * factor;
        grad_shift[c] += grad[c];
      }
    }
  });
}

template void maxout(const float*, const float*, int64_t, int64_t, int64_t, int64_t, float*, int32_t*);
template void maxout(const double*, const double*, int64_t, int64_t, int64_t, int64_t, double*, int32_t*);
template void layer_norm(const float*, const float*, const float*, int64_t, int64_t, float, int64_t, float*, float*,
                         float*);
template void layer_norm(const double*, const double*, const double*, int64_t, int64_t, double, int64_t, double*,
                         double*, double*);
template void layer_norm_backward(const float*, const float*, const float*, const float*, const float*, int64_t,
                                  int64_t, int64_t, float*, float*, float*);
template void layer_norm_backward(const double*, const double*, const double*, const double*, const double*, int64_t,
                                  int64_t, int64_t, double*, double*, double*);

}  // namespace spanbert::host
