// A row of weights made again in attention's backward: what cuda_backward.cuh calls mass and delta.
#pragma once

#include "attention/cuda_work.h"

namespace spanbert {

struct RowMass {
  float mass = 0, slopes = 0;  // sums of the weights, and of each times its slope
  float largest = 0, at_largest = 0;

  SPANBERT_DEVICE void add(float weight, float slope) {
    mass += weight;
    slopes = fmaf(weight, slope, slopes);
    if (weight > largest) largest = weight, at_largest = slope;
  }
  // Of `lanes` neighbours, a power of two: every one gets the sums, in an order that does not change.
  SPANBERT_DEVICE void combine(int lanes) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      mass += shuffle_xor(mass, mask);
      slopes += shuffle_xor(slopes, mask);
      const float other = shuffle_xor(largest, mask), at_other = shuffle_xor(at_largest, mask);
      if (other > largest) largest = other, at_largest = at_other;
    }
  }

  SPANBERT_DEVICE float inverse() const { return mass == 0 ? 0.0f : 1.0f / mass; }
  // Where one weight is all of the mass, delta is its slope to the last bit: their difference has to be 0.
  SPANBERT_DEVICE float delta() const { return mass == largest ? at_largest : slopes / mass; }
};

}  // namespace spanbert
