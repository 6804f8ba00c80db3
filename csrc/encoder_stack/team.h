// Threads that go through a computation of many phases together, in one parallel region.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

namespace spanbert {

// The pool may give fewer threads than were asked for, or one thread all of the work (inside another parallel region),
// so the team is counted before it begins: whoever comes later than kPatience finds it closed and has nothing to do.
// What is computed must not depend on the number of members.
class Team {
 public:
  // `phases`: how many lists of tasks are drawn from.
  Team(int64_t threads, int64_t phases);

  // Calls work(member) on the members, 0 .. members() - 1, at the same time.
  template <class F>
  void run(const F& work) {
    torch::stable::parallel_for(0, threads_, 1, [&](int64_t begin, int64_t end) {
      const int64_t member = join(end - begin);
      if (member >= 0) work(member);
    });
  }

  int64_t members() const { return members_.load(std::memory_order_relaxed); }
  // Waits until all members have come here.
  void wait();
  // The next of the tasks 0, 1, ... of a phase.
  int64_t draw(int64_t phase) { return next_[phase].fetch_add(1, std::memory_order_relaxed); }

 private:
  int64_t join(int64_t slots);

  const int64_t threads_;
  std::unique_ptr<std::atomic<int64_t>[]> next_;
  std::mutex mutex_;
  int64_t slots_ = 0;
  std::atomic<int64_t> members_{0};
  std::atomic<bool> closed_{false};
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<int> generation_{0};  // an int, which the system can wait for as it is
};

}  // namespace spanbert
