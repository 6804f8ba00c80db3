#include "common/levels.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>

namespace spanbert {

namespace {

Level highest_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  SPANBERT_IF_AVX512(if (avx512) return Level::avx512;)
  SPANBERT_IF_AVX2(if (avx2) return Level::avx2;)
#endif
  return Level::portable;
}

std::atomic<Level> chosen{highest_level()};

int64_t cpu_level() { return static_cast<int64_t>(level()); }

void set_cpu_level(int64_t wish) {
  const auto highest = static_cast<int64_t>(highest_level());
  STD_TORCH_CHECK(0 <= wish && wish <= highest, "level must be 0 to ", highest, " here, got ", wish);
  chosen = static_cast<Level>(wish);
}

}  // namespace

Level level() { return chosen; }

}  // namespace spanbert

STABLE_TORCH_LIBRARY_FRAGMENT(spanbert_kernels, library) {
  library.def("cpu_level() -> int");
  library.def("set_cpu_level(int level) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_level", TORCH_BOX(&spanbert::cpu_level));
  library.impl("set_cpu_level", TORCH_BOX(&spanbert::set_cpu_level));
}
