#include "common/isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

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
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

struct Known {
  std::string name;
  bool here;
};

// Those that were compiled.
const std::vector<Known>& known() {
#define SPANBERT_KNOWN(isa, unused) Known{#isa, has_##isa()},
  static const std::vector<Known> all{SPANBERT_ALL_ISAS(SPANBERT_KNOWN, )};
  return all;
}

int best() {
  const auto found = std::find_if(known().rbegin(), known().rend(), [](const Known& each) { return each.here; });
  return static_cast<int>(known().rend() - found) - 1;
}

std::atomic<int> chosen{best()};

std::string cpu_isa() { return known()[isa()].name; }

void set_cpu_isa(std::string name) {
  for (size_t i = 0; i < known().size(); ++i) {
    if (known()[i].name != name) continue;
    STD_TORCH_CHECK(known()[i].here, "this processor does not have ", name);
    chosen = static_cast<int>(i);
    return;
  }
  STD_TORCH_CHECK(false, "no kernels were compiled for the instruction set ", name);
}

}  // namespace

int isa() { return chosen; }

}  // namespace spanbert

STABLE_TORCH_LIBRARY_FRAGMENT(spanbert_kernels, library) {
  library.def("cpu_isa() -> str");
  library.def("set_cpu_isa(str name) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(spanbert_kernels, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&spanbert::cpu_isa));
  library.impl("set_cpu_isa", TORCH_BOX(&spanbert::set_cpu_isa));
}
