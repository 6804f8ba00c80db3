#include "encoder_stack/team.h"

#include <chrono>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace spanbert {
namespace {

constexpr std::chrono::milliseconds kPatience{100};
constexpr int kSpins = 2000;  // some ten microseconds; after them a thread that waits gives its core to others

// Waits for `done()` without keeping others from the core for long.
template <class F>
void wait_for(const F& done) {
  for (int spin = 0; !done(); ++spin) {
    if (spin >= kSpins) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
}

}  // namespace

Team::Team(int64_t threads, int64_t phases) : threads_(threads), next_(new std::atomic<int64_t>[phases]) {
  for (int64_t phase = 0; phase < phases; ++phase) next_[phase] = 0;
}

int64_t Team::join(int64_t slots) {
  int64_t member;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return -1;
    member = members_++;
    slots_ += slots;
    if (slots_ == threads_) closed_ = true;
  }
  const auto until = std::chrono::steady_clock::now() + kPatience;
  wait_for([&] {
    if (closed_) return true;
    if (member != 0 || std::chrono::steady_clock::now() < until) return false;
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    return true;
  });
  return member;
}

void Team::wait() {
  const int64_t all = members();
  if (all == 1) return;
  const int64_t generation = generation_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) == all - 1) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  wait_for([&] { return generation_.load(std::memory_order_acquire) != generation; });
}

}  // namespace spanbert
