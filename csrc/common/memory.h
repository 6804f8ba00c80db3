// Large memory that is to be written for the first time.
#pragma once

#include "common/huge_pages.h"
#include "common/tensors.h"

namespace spanbert {

// uint8 [bytes], on huge pages where there are any.
inline Tensor memory(int64_t bytes) {
  Tensor made = torch::stable::empty({bytes}, ScalarType::Byte);
  fresh_on_huge_pages(made.mutable_data_ptr(), bytes);
  return made;
}

}  // namespace spanbert
