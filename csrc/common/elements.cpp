// Elements of tensors that the caller keeps alive, by their addresses: a look at some of thousands of weights, for
// which gathering them by PyTorch's operators takes longer than reading them.

#include <cstring>

#include "common/tensors.h"

namespace spanbert {
namespace {

// int64 addresses and sizes in bytes, up to 4 -> the elements' bits, int32.
Tensor elements_at(const Tensor& addresses, const Tensor& sizes) {
  STD_TORCH_CHECK(addresses.scalar_type() == ScalarType::Long && sizes.scalar_type() == ScalarType::Long &&
                      addresses.numel() == sizes.numel() && addresses.is_contiguous() && sizes.is_contiguous(),
                  "addresses and sizes must be int64 tensors of one length");
  const int64_t count = addresses.numel();
  Tensor found = torch::stable::new_empty(addresses, {count}, ScalarType::Int);
  const auto *address = addresses.const_data_ptr<int64_t>(), *size = sizes.const_data_ptr<int64_t>();
  auto* to = found.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(size[i] > 0 && size[i] <= 4, "an element of ", size[i], " bytes");
    to[i] = 0;
    std::memcpy(to + i, reinterpret_cast<const void*>(address[i]), size[i]);
  }
  return found;
}

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_FRAGMENT(spanbert_kernels, library) {
  library.def("elements_at(Tensor addresses, Tensor sizes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CPU, library) {
  library.impl("elements_at", TORCH_BOX(&spanbert::elements_at));
}
