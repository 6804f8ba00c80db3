// The activations between a span's linear layers, and their derivatives.
#pragma once

#include "common/vector.h"
#include "span_linear/call.h"

namespace spanbert {
namespace SPANBERT_ISA {

// The normal distribution function, 0.5 erfc(-x / sqrt 2). erfc: Chebyshev fit of Press et al., Numerical Recipes,
// relative error below 1.2e-7, so that the left tail keeps its digits.
inline Vector<float> normal_cdf(Vector<float> x) {
  typedef Vector<float> V;
  const V z = (x < 0 ? -x : x) * 0.70710678f;
  const V t = 1.0f / (1.0f + 0.5f * z);
  V p = broadcast(0.17087277f);
  for (const float c : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f, 0.37409196f,
                        1.00002368f, -1.26551223f}) {
    p = p * t + c;
  }
  const V tail = 0.5f * t * exponential(p - z * z);
  return x < 0 ? tail : 1.0f - tail;
}
inline Vector<double> normal_cdf(Vector<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
  return x;
}

// An activation of N vectors, and its derivative. Without gelu it is branch-free: what is at most `bound` becomes 0,
// and nothing is at most NaN.
template <class A>
struct Activate {
  using V = Vector<A>;

  bool gelu;
  V bound;

  explicit Activate(Activation activation)
      : gelu(activation == Activation::gelu), bound(broadcast(activation == Activation::relu ? A(0) : A(NAN))) {}

  template <int N>
  [[gnu::always_inline]] void forward(const V (&pre)[N], V (&values)[N]) const {
    if (gelu) {
      for (int v = 0; v < N; ++v) values[v] = pre[v] * normal_cdf(pre[v]);
    } else {
      for (int v = 0; v < N; ++v) values[v] = pre[v] <= bound ? V{} : pre[v];
    }
  }

  // From the gradients of the values, in place, those of the pre-activations.
  template <int N>
  [[gnu::always_inline]] void backward(const V (&pre)[N], V (&grads)[N]) const {
    if (gelu) {
      for (int v = 0; v < N; ++v) {
        const V density = exponential(pre[v] * pre[v] * A(-0.5)) * A(0.39894228040143267794);
        grads[v] *= normal_cdf(pre[v]) + pre[v] * density;
      }
    } else {
      for (int v = 0; v < N; ++v) grads[v] = pre[v] <= bound ? V{} : grads[v];
    }
  }
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
