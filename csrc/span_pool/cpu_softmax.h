// What the forward and the backward on a CPU share. Only for kernel files.
#pragma once

#include "common/vector.h"
#include "span_pool/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

template <class A>
int64_t padded(int64_t columns) {
  return (columns + lanes<A> - 1) / lanes<A> * lanes<A>;
}

// Online softmax over the tokens of a group, one head: for each token the factor on what was accumulated before it and
// its own weight, both relative to the running maximum.
template <class A>
struct RunningSoftmax {
  A maximum = -INFINITY, total = 0;

  void add(A score, A* rescale, A* weight) {
    if (score > maximum || score != score) {
      *rescale = maximum == -INFINITY ? A(0) : std::exp(maximum - score);
      *weight = 1 + (score - score);  // NaN for an infinite score, as softmax has it
      maximum = score;
    } else {
      *rescale = 1;
      *weight = score == -INFINITY ? A(0) : std::exp(score - maximum);
    }
    total = total * *rescale + *weight;
  }

  // What the weights are multiplied by to sum to 1; 0 where every score is -inf: such a span is like one of no token.
  A scale() const { return total == 0 ? A(0) : 1 / total; }
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
