// Work shared out to threads that live for one call: a process that forks keeps none that its child would miss.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace spanbert::host {

// Numbers that are worth a thread of their own: starting one takes some tens of microseconds.
constexpr int64_t MIN_SHARE = int64_t(1) << 17;

// Calls f(task) for every task in 0 .. count - 1, each once, on at most `threads` threads, this one among them.
template <class F>
void share_out(int64_t count, int64_t threads, const F& f) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t task = next++; task < count; task = next++) f(task);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // There may be no more threads to have; those that are here do all the work.
  }
  work();
  for (std::thread& each : others) each.join();
}

// Calls f(row) for every row in 0 .. count - 1, each once.
template <class F>
void share_rows(int64_t count, int64_t threads, const F& f) {
  constexpr int64_t block = 256;
  share_out((count + block - 1) / block, threads, [&](int64_t task) {
    const int64_t end = std::min(count, (task + 1) * block);
    for (int64_t row = task * block; row < end; ++row) f(row);
  });
}

// Calls f(begin, end) for ranges of columns that are 0 .. size together; no two threads write to a line of the cache.
template <class T, class F>
void share_columns(int64_t size, int64_t threads, const F& f) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  const int64_t lines = (size + line - 1) / line, shares = std::max<int64_t>(std::min(threads, lines), 1);
  share_out(shares, shares,
            [&](int64_t task) { f(lines * task / shares * line, std::min(size, lines * (task + 1) / shares * line)); });
}

}  // namespace spanbert::host
