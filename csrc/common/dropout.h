// What a call drops, for the CPU kernels.
#pragma once

#include "common/arguments.h"
#include "common/philox.h"

namespace spanbert {

inline Dropout dropout_of(const DropoutArguments& arguments) {
  if (arguments.p == 0) return {};
  const uint64_t seed = static_cast<uint64_t>(*arguments.seed_data());
  return {true, seed, arguments.threshold(), 1.0 / (1.0 - arguments.p)};
}

}  // namespace spanbert
