// Small kernels, right and wrong ones, that show what fibers.h does and what it notices: test_fibers.py runs them.

#include <cstdio>
#include <map>

#include "common/cuda_threads.h"

namespace spanbert {
namespace {

float results[256];

struct Shared {
  float values[64];
};

// Every thread reads what the thread before it wrote.
__global__ void neighbours(bool wait) {
  auto& shared = shared_memory<Shared>();
  const int i = static_cast<int>(threadIdx.x);
  shared.values[i] = static_cast<float>(i);
  if (wait) __syncthreads();
  results[64 * blockIdx.x + i] = shared.values[(i + 63) % 64];
}

__global__ void lanes() {
  const int i = static_cast<int>(threadIdx.x);
  const float sum = warp_sum(static_cast<float>(i)), largest = warp_maximum(static_cast<float>(i), 8);
  const unsigned odd = ballot(i % 2 == 1);
  results[i] = sum + shuffle(largest, 3) + static_cast<float>(lowest_bit(odd));
}

__global__ void some_wait_for_all() {
  if (threadIdx.x < 16) __syncthreads();
}

__global__ void some_lanes_exchange() {
  if (threadIdx.x % 32 < 16) results[threadIdx.x] = shuffle(1.0f, 0);
}

__global__ void at_different_places() {
  if (threadIdx.x % 2) {
    results[threadIdx.x] = shuffle(1.0f, 0);
  } else {
    results[threadIdx.x] = shuffle(2.0f, 0);
  }
}

__global__ void write_beyond() {
  float* values = shared_memory<Shared>().values;
  if (threadIdx.x == 0) *(values + 64) = 1;
}

void run(const std::string& name) {
  if (name == "neighbours") SPANBERT_LAUNCH(neighbours, 4, 64, , true);
  if (name == "race") SPANBERT_LAUNCH(neighbours, 4, 64, , false);
  if (name == "lanes") SPANBERT_LAUNCH(lanes, 1, 64, );
  if (name == "some wait") SPANBERT_LAUNCH(some_wait_for_all, 1, 64, );
  if (name == "some lanes") SPANBERT_LAUNCH(some_lanes_exchange, 1, 64, );
  if (name == "places") SPANBERT_LAUNCH(at_different_places, 1, 64, );
  if (name == "beyond") SPANBERT_LAUNCH(write_beyond, 1, 64, );
  if (name == "no blocks") SPANBERT_LAUNCH(lanes, 0, 32, );
}

}  // namespace
}  // namespace spanbert

int main(int, char** arguments) {
  try {
    spanbert::run(arguments[1]);
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 1;
  }
  for (const float result : spanbert::results) std::printf("%g\n", result);
}
