// Rows of float32 between the products: their normalization, and the formats in which they enter a product.
//
// Rows are padded to whole vectors (`whole`), with zeros.
#pragma once

#include <cmath>

#include "common/tiles.h"

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int64_t whole(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

// A vector in the format of a product's input.
inline void round_to(float* to, Vector<float> x) { store(to, x); }
inline void round_to(bfloat16* to, Vector<float> x) {
#if defined(__AVX512BF16__)
  const __m512bh rounded = (__m512bh)_mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh((__m512)x));
  std::memcpy(to, &rounded, kLanes * sizeof(bfloat16));
#else
  store(to, x);
#endif
}

template <class T>
inline void round_row(const float* from, int64_t columns, T* to) {
  for (int64_t c = 0; c < columns; c += kLanes) round_to(to + c, load(from + c));
}

// A row as unsigned bytes around 128, in steps of its largest absolute value / 127, which is returned; what comes after
// the columns in the last four bytes meets zeros of the weight.
inline float quantize_row(const float* from, int64_t columns, uint8_t* to) {
  // As integers the sizes are in the same order, with NaN above all.
  typedef Simd<float>::Bits Bits;
  Bits most{};
  for (int64_t c = 0; c < columns; c += kLanes) {
    const Bits size = bits_as<Bits>(absolute(load(from + c)));
    most = size > most ? size : most;
  }
  const float largest = largest_of<float>(bits_as<Vector<float>>(most));
  if (!(largest <= 3e38f)) {  // an infinity or NaN: the whole row is NaN, as it is after its normalization
    for (int64_t c = 0; c < columns; ++c) to[c] = 128;
    return NAN;
  }
  const float step = largest > 1e-35f ? largest / 127.0f : 1.0f, inverse = 1.0f / step;
  for (int64_t c = 0; c < columns; c += kLanes) {
    // 1.5 x 2^23 + 128: the low bits of the sum are the rounded number.
    const Vector<float> shifted = load(from + c) * inverse + 12583040.0f;
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)shifted));
#else
    for (int lane = 0; lane < kLanes; ++lane) to[c + lane] = static_cast<uint8_t>(bits_as<Bits>(shifted)[lane]);
#endif
  }
  return step;
}

// LayerNorm of a row: to = (x - mean) / sqrt(variance + epsilon) * weight + bias; where it is not `centred`, with 0 for
// the mean.
inline void normalize_row(const float* x, int64_t columns, const float* weight, const float* bias, float epsilon,
                          bool centred, float* to) {
  const int64_t padded = whole(columns);
  Vector<float> sum{}, squares{};
  for (int64_t c = 0; c < padded; c += kLanes) sum += load(x + c);
  const Vector<float> mean = broadcast(centred ? sum_of<float>(sum) / static_cast<float>(columns) : 0.0f);
  for (int64_t c = 0; c < columns; c += kLanes) {
    Vector<float> apart = load(x + c) - mean;
    if (c + kLanes > columns) {
      for (int64_t lane = columns - c; lane < kLanes; ++lane) apart[lane] = 0;
    }
    squares += apart * apart;
  }
  const float variance = sum_of<float>(squares) / static_cast<float>(columns);
  const Vector<float> scale = broadcast(1.0f / std::sqrt(variance + epsilon));
  for (int64_t c = 0; c < padded; c += kLanes) {
    store(to + c, (load(x + c) - mean) * scale * load(weight + c) + load(bias + c));
  }
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
