// Operators that commit faults, to show that a sanitized build reports them: in sanitized builds alone.

#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "common/isa.h"

namespace spanbert {

SPANBERT_DECLARE(double read_past(int64_t allocated))
SPANBERT_DECLARE(int64_t overflow(int64_t summand))

namespace {

double canary_read_past(int64_t allocated) { return SPANBERT_KERNEL(read_past)(allocated); }
int64_t canary_overflow(int64_t summand) { return SPANBERT_KERNEL(overflow)(summand); }

}  // namespace
}  // namespace spanbert

STABLE_TORCH_LIBRARY_FRAGMENT(spanbert_kernels, library) {
  library.def("canary_read_past(int allocated) -> float");
  library.def("canary_overflow(int summand) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("canary_read_past", TORCH_BOX(&spanbert::canary_read_past));
  library.impl("canary_overflow", TORCH_BOX(&spanbert::canary_overflow));
}
