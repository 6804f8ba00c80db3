#include "common/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>

namespace spanbert {
namespace {

// Whether the processor has an instruction set.
bool has_portable() { return true; }
#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#define SPANBERT_HAS(isa, unused) has_##isa(),

int best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  int best = 0, number = 0;
  for (const bool has : {SPANBERT_ISAS(SPANBERT_HAS, )}) {
    if (has) best = number;
    ++number;
  }
  return best;
}

std::atomic<int> chosen{best_isa()};

int64_t cpu_isa() { return isa(); }

void set_cpu_isa(int64_t number) {
  const int best = best_isa();
  STD_TORCH_CHECK(0 <= number && number <= best, "the instruction set must be 0 to ", best, " here, got ", number);
  chosen = static_cast<int>(number);
}

}  // namespace

int isa() { return chosen; }

}  // namespace spanbert

STABLE_TORCH_LIBRARY_FRAGMENT(spanbert_kernels, library) {
  library.def("cpu_isa() -> int");
  library.def("set_cpu_isa(int number) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&spanbert::cpu_isa));
  library.impl("set_cpu_isa", TORCH_BOX(&spanbert::set_cpu_isa));
}
