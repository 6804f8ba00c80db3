#include "encoder_stack/team.h"

#include <chrono>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace spanbert {
namespace {

constexpr std::chrono::milliseconds kPatience{100};
// What a thread may wait for without giving its core to others: less than the system takes to wake it up again.
constexpr std::chrono::microseconds kSpinning{30};
constexpr std::chrono::microseconds kLooking{50};

// Whether `done()` came true while spinning.
template <class F>
bool spin_for(const F& done) {
  const auto until = std::chrono::steady_clock::now() + kSpinning;
  do {
    for (int i = 0; i < 8; ++i) {
      if (done()) return true;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() < until);
  return false;
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
  if (spin_for([&] { return closed_.load(); })) return member;
  while (!closed_) {
    std::this_thread::sleep_for(kLooking);
    if (member == 0 && std::chrono::steady_clock::now() >= until) {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
  }
  return member;
}

void Team::wait() {
  const auto all = static_cast<int>(members());
  if (all == 1) return;
  const int generation = generation_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) == all - 1) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    generation_.notify_all();
    return;
  }
  if (spin_for([&] { return generation_.load(std::memory_order_acquire) != generation; })) return;
  generation_.wait(generation, std::memory_order_acquire);
}

}  // namespace spanbert
