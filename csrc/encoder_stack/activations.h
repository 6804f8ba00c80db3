// The activations between the two products of a feed-forward block.
#pragma once

#include "common/vector.h"
#include "encoder_stack/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {

// 1 / x, for x that is neither 0 nor subnormal.
inline Vector<float> reciprocal(Vector<float> x) {
#if defined(__AVX512F__)
  const auto first = (Vector<float>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
  return first * (2.0f - x * first);  // one step of Newton's
#else
  return 1.0f / x;
#endif
}

inline Vector<float> sigmoid(Vector<float> x) {
  const Vector<float> bound = broadcast(-87.0f);
  return reciprocal(1.0f + exponential(-(x < bound ? bound : x)));
}

// x times the normal distribution function. Its tails, erfc(|x| / sqrt 2): absolute error below 1.5e-7 (Abramowitz and
// Stegun 7.1.26).
inline Vector<float> gelu(Vector<float> x) {
  const Vector<float> bound = broadcast(30.0f), any = x < 0 ? -x : x, size = any > bound ? bound : any;
  const Vector<float> z = size * 0.70710678f;
  const Vector<float> t = reciprocal(1.0f + 0.3275911f * z);
  Vector<float> p = broadcast(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector<float> lost = 0.5f * size * (p * t * exponential(-z * z));
  return x < 0 ? -lost : x - lost;
}

inline Vector<float> tanh_of(Vector<float> x) {
  const Vector<float> size = x < 0 ? -x : x, square = x * x, bound = broadcast(44.0f);
  Vector<float> p = broadcast(-5.70498872745e-3f);  // Cephes' tanhf, for small x
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vector<float> near = p * square * x + x;
  const Vector<float> far = 1.0f - 2.0f * reciprocal(1.0f + exponential(2.0f * (size > bound ? bound : size)));
  return size < 0.625f ? near : x < 0 ? -far : far;
}

// f(vector -> vector) for an activation.
template <class F>
inline void with_activation(StackActivation activation, const F& f) {
  using V = Vector<float>;
  switch (activation) {
    case StackActivation::gelu:
      return f([](V x) __attribute__((always_inline)) { return gelu(x); });
    case StackActivation::gelu_tanh:
      return f([](V x)
                   __attribute__((always_inline)) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); });
    case StackActivation::quick_gelu:
      return f([](V x) __attribute__((always_inline)) { return x * sigmoid(1.702f * x); });
    case StackActivation::clipped_gelu:
      return f([](V x) __attribute__((always_inline)) {
        const V value = gelu(x), bound = broadcast(10.0f);
        return value > bound ? bound : value;
      });
    case StackActivation::relu:
      return f([](V x) __attribute__((always_inline)) { return x <= 0 ? V{} : x; });
    case StackActivation::relu6:
      return f([](V x) __attribute__((always_inline)) {
        const V bound = broadcast(6.0f);
        return x <= 0 ? V{} : x > bound ? bound : x;
      });
    case StackActivation::relu_squared:
      return f([](V x) __attribute__((always_inline)) { return x <= 0 ? V{} : x * x; });
    case StackActivation::leaky_relu:
      return f([](V x) __attribute__((always_inline)) { return x <= 0 ? 0.01f * x : x; });
    case StackActivation::silu:
      return f([](V x) __attribute__((always_inline)) { return x * sigmoid(x); });
    case StackActivation::sigmoid:
      return f([](V x) __attribute__((always_inline)) { return sigmoid(x); });
    case StackActivation::tanh:
      return f([](V x) __attribute__((always_inline)) { return tanh_of(x); });
    case StackActivation::identity:
      return f([](V x) __attribute__((always_inline)) { return x; });
  }
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
