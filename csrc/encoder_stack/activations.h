// The activations between the two products of a feed-forward block.
#pragma once

#include <type_traits>

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

inline Vector<float> sigmoid(Vector<float> x) { return reciprocal(1.0f + exponential(at_most(-x, 87.0f))); }

// x times the normal distribution function. Its tails, erfc(|x| / sqrt 2): absolute error below 1.5e-7 (Abramowitz and
// Stegun 7.1.26).
inline Vector<float> gelu(Vector<float> x) {
  const Vector<float> size = at_most(absolute(x), 30.0f);
  const Vector<float> z = size * 0.70710678f;
  const Vector<float> t = reciprocal(1.0f + 0.3275911f * z);
  Vector<float> p = broadcast(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector<float> lost = 0.5f * size * (p * t * exponential(-z * z));
  return (x < 0 ? Vector<float>{} : x) - lost;
}

inline Vector<float> tanh_of(Vector<float> x) {
  const Vector<float> size = absolute(x), square = x * x;
  Vector<float> p = broadcast(-5.70498872745e-3f);  // Cephes' tanhf, for small x
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Vector<float> near = p * square * x + x;
  const Vector<float> far = 1.0f - 2.0f * reciprocal(1.0f + exponential(2.0f * at_most(size, 44.0f)));
  return size < 0.625f ? near : x < 0 ? -far : far;
}

// f(vector -> vector, whether it is the usual one) for an activation.
template <class F>
inline void with_activation(StackActivation activation, const F& f) {
  using V = Vector<float>;
  switch (activation) {
    case StackActivation::gelu:
      return f([](V x) __attribute__((always_inline)) { return gelu(x); }, std::true_type{});
    case StackActivation::gelu_tanh:
      return f([](V x)
                   __attribute__((always_inline)) { return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x)); },
               std::false_type{});
    case StackActivation::quick_gelu:
      return f([](V x) __attribute__((always_inline)) { return x * sigmoid(1.702f * x); }, std::false_type{});
    case StackActivation::clipped_gelu:
      return f([](V x) __attribute__((always_inline)) { return at_most(gelu(x), 10.0f); }, std::false_type{});
    case StackActivation::relu:
      return f([](V x) __attribute__((always_inline)) { return x <= 0 ? V{} : x; }, std::false_type{});
    case StackActivation::relu6:
      return f([](V x) __attribute__((always_inline)) { return at_most(x <= 0 ? V{} : x, 6.0f); }, std::false_type{});
    case StackActivation::relu_squared:
      return f([](V x) __attribute__((always_inline)) { return x <= 0 ? V{} : x * x; }, std::false_type{});
    case StackActivation::leaky_relu:
      return f([](V x) __attribute__((always_inline)) { return x <= 0 ? 0.01f * x : x; }, std::false_type{});
    case StackActivation::silu:
      return f([](V x) __attribute__((always_inline)) { return x * sigmoid(x); }, std::false_type{});
    case StackActivation::sigmoid:
      return f([](V x) __attribute__((always_inline)) { return sigmoid(x); }, std::false_type{});
    case StackActivation::tanh:
      return f([](V x) __attribute__((always_inline)) { return tanh_of(x); }, std::false_type{});
    case StackActivation::identity:
      return f([](V x) __attribute__((always_inline)) { return x; }, std::false_type{});
  }
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
