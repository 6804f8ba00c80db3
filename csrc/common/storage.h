// The number formats that the kernels read and write.
#pragma once

#include <cstdint>

namespace spanbert {

enum class Storage : int { float32, bfloat16, float16, float64 };

// What the products of packed weights multiply. Their sums are float32.
enum class Precision : int64_t { float32, bfloat16, int8 };

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What a format is computed in.
template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

// Calls f with a value of the storage type: f(S{}).
template <class F>
inline void with_storage(Storage storage, const F& f) {
  switch (storage) {
    case Storage::float32:
      return f(float{});
    case Storage::bfloat16:
      return f(bfloat16{});
    case Storage::float16:
      return f(float16{});
    case Storage::float64:
      return f(double{});
  }
}

}  // namespace spanbert
