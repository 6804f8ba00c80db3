// Work shared out to torch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace spanbert {

// Calls f(task) for every task in 0 .. count, each once. Threads draw the next task when they are free, so that tasks
// of unequal size balance; what a task computes must not depend on which thread runs it.
template <class F>
void parallel_tasks(int64_t count, const F& f) {
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  if (threads <= 1) {
    for (int64_t task = 0; task < count; ++task) f(task);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task = next++; task < count; task = next++) f(task);
    }
  });
}

}  // namespace spanbert
