// Work shared out to torch's own thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace spanbert {

// Calls work(draw) on every thread; draw() gives the next of 0 .. count - 1, each once, then -1.
template <class F>
void share_out(int64_t count, const F& work) {
  std::atomic<int64_t> next{0};
  const auto draw = [&] {
    const int64_t task = next++;
    return task < count ? task : -1;
  };
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  if (threads <= 1) return work(draw);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) work(draw);
  });
}

// Calls f(task) for every task in 0 .. count - 1, each once. Threads draw the next task when they are free, so that
// tasks of unequal size balance; what a task computes must not depend on which thread runs it.
template <class F>
void parallel_tasks(int64_t count, const F& f) {
  share_out(count, [&](const auto& draw) {
    for (int64_t task = draw(); task >= 0; task = draw()) f(task);
  });
}

// The same with f(task, next): `next` is the task that this thread takes afterwards, or -1. For many short tasks.
template <class F>
void parallel_tasks_ahead(int64_t count, const F& f) {
  share_out(count, [&](const auto& draw) {
    int64_t next;
    for (int64_t task = draw(); task >= 0; task = next) {
      next = draw();
      f(task, next);
    }
  });
}

}  // namespace spanbert
