// Runs CUDA kernels on a CPU, to test them: the kernels' text is compiled as plain C++ and the threads of a block are
// fibers of one CPU thread, one block after another. A fiber runs until it has to wait for others (a barrier, a
// warp's exchange). Errors that a GPU would answer with wrong numbers end the launch with an exception: threads that
// wait at different places or for a thread that has ended, and writes beyond the shared memory. SPANBERT_FIBERS_SEED
// shuffles the order of blocks and threads, which shows where a barrier is missing.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define SPANBERT_DEVICE inline
#define __global__ static
#define __launch_bounds__(...)
#define SPANBERT_LAUNCH(kernel, blocks, threads, stream, ...) \
  fibers::launch(blocks, threads, [=] { kernel(__VA_ARGS__); })
#define SPANBERT_LAUNCH_SHARED(kernel, layout, blocks, threads, stream, ...) \
  fibers::launch(blocks, threads, [=] { kernel(__VA_ARGS__); }, sizeof(layout))

namespace fibers {

struct Index {
  unsigned x;
};

enum class Wait { none, block, warp };

// 16 bytes on their way to shared memory; those of one lot arrive together.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  int lot;
};

struct Fiber {
  ucontext_t begin;
  std::jmp_buf context;
  void* stack = nullptr;
  bool started = false, ended = false;
  Wait wait = Wait::none;
  int place = 0;          // the source line at which it waits
  uint64_t exchange = 0;  // warp exchanges so far
  std::vector<Copy> copies;
  int lots = 0;  // begun so far
};

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024, kSharedBytes = 48 * 1024, kGuard = 4096;
// What a launch may ask for: of the architectures that are shipped, every GPU has it.
constexpr size_t kMostSharedBytes = 99 * 1024;
constexpr size_t kSlot = 32;  // bytes that a lane can give at once
constexpr unsigned char kPoison = 0xff, kGuardByte = 0xa5;

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> slots;  // [2][threads][kSlot]: what the lanes of a warp exchange
  std::vector<unsigned char> shared;
  size_t shared_bytes = 0, asked_bytes = 0;
  const std::function<void()>* kernel = nullptr;
  std::jmp_buf scheduler;
  unsigned thread = 0, block = 0, threads = 0;

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  Fiber& own() { return fibers[thread]; }

  static void enter() {
    Machine& machine = get();
    (*machine.kernel)();
    machine.fibers[machine.thread].ended = true;
    _longjmp(machine.scheduler, 1);
  }

  void resume(unsigned thread_index) {
    thread = thread_index;
    Fiber& fiber = fibers[thread];
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    setcontext(&fiber.begin);
  }

  void wait(Wait kind, int place) {
    Fiber& fiber = fibers[thread];
    fiber.wait = kind;
    fiber.place = place;
    if (!_setjmp(fiber.context)) _longjmp(scheduler, 1);
  }

  // Lets the threads first .. last - 1 go on if all wait for each other at one place.
  bool release(unsigned first, unsigned last, Wait kind) {
    for (unsigned i = first; i < last; ++i) {
      if (fibers[i].ended || fibers[i].wait != kind || fibers[i].place != fibers[first].place) return false;
    }
    for (unsigned i = first; i < last; ++i) fibers[i].wait = Wait::none;
    return true;
  }

  void run_block(std::vector<unsigned>& order, std::mt19937* random) {
    std::fill(shared.begin(), shared.end(), kPoison);
    std::fill(slots.begin(), slots.end(), kPoison);
    shared_bytes = 0;
    for (Fiber& fiber : fibers) {
      fiber.started = fiber.ended = false;
      fiber.wait = Wait::none;
      fiber.exchange = 0;
      fiber.copies.clear();
      fiber.lots = 0;
      getcontext(&fiber.begin);
      fiber.begin.uc_stack.ss_sp = fiber.stack;
      fiber.begin.uc_stack.ss_size = kStack;
      fiber.begin.uc_link = nullptr;
      makecontext(&fiber.begin, enter, 0);
    }
    while (true) {
      if (random) std::shuffle(order.begin(), order.end(), *random);
      bool moved = false;
      for (const unsigned i : order) {
        if (fibers[i].ended || fibers[i].wait != Wait::none) continue;
        resume(i);
        moved = true;
      }
      for (unsigned warp = 0; warp < threads; warp += kWarp) moved |= release(warp, warp + kWarp, Wait::warp);
      moved |= release(0, threads, Wait::block);
      if (moved) continue;
      for (const Fiber& fiber : fibers) {
        if (fiber.ended) continue;
        throw std::runtime_error("threads of a block wait for each other at different places, one at line " +
                                 std::to_string(fiber.place));
      }
      break;
    }
    for (size_t i = shared_bytes; i < shared_bytes + kGuard && shared_bytes > 0; ++i) {
      if (shared[i] != kGuardByte) throw std::runtime_error("a write beyond the shared memory");
    }
  }
};

inline void launch(int64_t blocks, int threads, const std::function<void()>& kernel, size_t asked_bytes = 0) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (blocks <= 0 || blocks >= int64_t{1} << 31)
    throw std::runtime_error("a launch of " + std::to_string(blocks) + " blocks");
  if (threads % kWarp != 0 || threads > 1024)
    throw std::runtime_error("a launch of blocks of " + std::to_string(threads));
  if (asked_bytes > kMostSharedBytes)
    throw std::runtime_error("a launch with " + std::to_string(asked_bytes) + " bytes of shared memory");
  Machine& machine = Machine::get();
  machine.kernel = &kernel;
  machine.threads = static_cast<unsigned>(threads);
  machine.asked_bytes = asked_bytes;
  machine.slots.resize(2 * threads * kSlot);
  machine.shared.resize(kMostSharedBytes + kGuard);
  machine.fibers.resize(threads);
  for (Fiber& fiber : machine.fibers) {
    if (fiber.stack) continue;
    fiber.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fiber.stack == MAP_FAILED) throw std::bad_alloc();
  }
  const char* seed = std::getenv("SPANBERT_FIBERS_SEED");
  std::mt19937 random(seed ? std::strtoul(seed, nullptr, 10) : 0);
  std::vector<unsigned> order(threads), turns(blocks);
  std::iota(order.begin(), order.end(), 0);
  std::iota(turns.begin(), turns.end(), 0);
  if (seed) std::shuffle(turns.begin(), turns.end(), random);
  for (const unsigned block : turns) {
    machine.block = block;
    machine.run_block(order, seed ? &random : nullptr);
  }
}

// Every lane of a warp gives a value and, when all have, reads those of all: the first lane's slot, kSlot bytes each.
template <class T>
const unsigned char* exchange_all(const T& value, int place) {
  static_assert(sizeof(T) <= kSlot);
  Machine& machine = Machine::get();
  // Two sets of slots: a lane may come to its next exchange before others have read the last.
  unsigned char* slots =
      machine.slots.data() + (machine.fibers[machine.thread].exchange++ % 2) * machine.threads * kSlot;
  std::memcpy(slots + machine.thread * kSlot, &value, sizeof(T));
  machine.wait(Wait::warp, place);
  return slots + machine.thread / kWarp * kWarp * kSlot;
}

template <class T>
T exchange(T value, int from, int place) {
  T result;
  std::memcpy(&result, exchange_all(value, place) + from * kSlot, sizeof(T));
  return result;
}

inline void check_alignment(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes == 0) return;
  std::fprintf(stderr, "a load or store of %zu bytes at %p, which is not aligned\n", bytes, pointer);
  std::abort();
}

}  // namespace fibers

#define threadIdx (fibers::Index{fibers::Machine::get().thread})
#define blockIdx (fibers::Index{fibers::Machine::get().block})
#define __syncthreads() fibers::Machine::get().wait(fibers::Wait::block, __LINE__)

namespace spanbert {

inline float shuffle(float value, int lane, int place = __builtin_LINE()) {
  return fibers::exchange(value, lane, place);
}
inline int shuffle(int value, int lane, int place = __builtin_LINE()) { return fibers::exchange(value, lane, place); }
inline float shuffle_xor(float value, int mask, int place = __builtin_LINE()) {
  return fibers::exchange(value, static_cast<int>(threadIdx.x % 32) ^ mask, place);
}
inline int shuffle_xor(int value, int mask, int place = __builtin_LINE()) {
  return fibers::exchange(value, static_cast<int>(threadIdx.x % 32) ^ mask, place);
}
inline long long shuffle_xor(long long value, int mask, int place = __builtin_LINE()) {
  return fibers::exchange(value, static_cast<int>(threadIdx.x % 32) ^ mask, place);
}
inline unsigned ballot(bool value, int place = __builtin_LINE()) {
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= static_cast<unsigned>(fibers::exchange(value, lane, place)) << lane;
  return result;
}
inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }
inline int count_bits(unsigned bits) { return __builtin_popcount(bits); }

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(float16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  const uint32_t scaled = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  return bits_to_float(scaled | special | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}
inline void from_float(float x, float* to) { *to = x; }
inline void from_float(float x, bfloat16* to) {
  const uint32_t bits = float_to_bits(x);
  to->bits = static_cast<uint16_t>(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void from_float(float x, float16* to) {
  // Adding a power of two rounds to the last bit that the format keeps, also in its subnormal range.
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000;
  const float size = bits_to_float(bits & 0x7fffffff);
  if (!(size < 65520.0f)) {
    to->bits = static_cast<uint16_t>(sign | (x != x ? 0x7fff : 0x7c00));
    return;
  }
  const uint32_t exponent = (bits & 0x7f800000) > (113u << 23) ? bits & 0x7f800000 : 113u << 23;
  const float magic = bits_to_float(exponent + (13u << 23));
  const float rounded = (size + magic) - magic;
  to->bits = static_cast<uint16_t>(sign | float_to_bits(rounded * 0x1p-112f) >> 13);
}
inline float larger(float a, float b) { return a != a || b != b ? NAN : a > b ? a : b; }

// Of each of the two numbers in a word, or in two.
template <class S, class Each>
inline uint32_t halves(uint32_t a, uint32_t b, const Each& each) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    S found;
    from_float(each(to_float(S{static_cast<uint16_t>(a >> shift)}), to_float(S{static_cast<uint16_t>(b >> shift)})),
               &found);
    result |= static_cast<uint32_t>(found.bits) << shift;
  }
  return result;
}
template <class S>
inline uint32_t larger_halves(uint32_t a, uint32_t b, S) {
  return halves<S>(a, b, [](float x, float y) { return larger(x, y); });
}
template <class S>
inline uint32_t plain_halves(uint32_t word, S) {
  return halves<S>(word, 0, [](float x, float) { return x != x ? NAN : x + 0.0f; });
}

inline uint32_t sign_masks(uint32_t word) { return (word >> 15 & 0x10001) * 0xffff; }
inline uint32_t largest_of(uint32_t a, uint32_t b, uint32_t c) { return std::max({a, b, c}); }
inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(both >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return result;
}

// What is not aligned ends the process: an exception cannot leave a fiber.
template <int N>
inline void load_words(const void* from, uint32_t (&words)[N]) {
  fibers::check_alignment(from, sizeof(words));
  std::memcpy(words, from, sizeof(words));
}
template <int N>
inline void store_words(void* to, const uint32_t (&words)[N]) {
  fibers::check_alignment(to, sizeof(words));
  std::memcpy(to, words, sizeof(words));
}

inline void get_words(const void* from, uint32_t (&words)[4]) { load_words(from, words); }
inline void put_words(void* to, const uint32_t (&words)[4]) { store_words(to, words); }
inline void put_word(void* to, uint32_t word) {
  fibers::check_alignment(to, sizeof(word));
  std::memcpy(to, &word, sizeof(word));
}

// A copy arrives as late as it can: where its thread waits for it.
inline void copy_words(void* to, const void* from, bool there) {
  fibers::check_alignment(to, 16);
  if (there) fibers::check_alignment(from, 16);
  fibers::Fiber& fiber = fibers::Machine::get().own();
  fiber.copies.push_back({to, there ? from : nullptr, fiber.lots});
}
inline void commit_copies() { ++fibers::Machine::get().own().lots; }
template <int Lots>
inline void wait_for_copies() {
  fibers::Fiber& fiber = fibers::Machine::get().own();
  std::erase_if(fiber.copies, [&](const fibers::Copy& copy) {
    if (copy.lot >= fiber.lots - Lots) return false;
    if (copy.from) {
      std::memcpy(copy.to, copy.from, 16);
    } else {
      std::memset(copy.to, 0, 16);
    }
    return true;
  });
}

template <class Layout>
inline Layout& shared_memory() {
  static_assert(sizeof(Layout) <= fibers::kSharedBytes);
  fibers::Machine& machine = fibers::Machine::get();
  if (machine.shared_bytes == 0) {
    machine.shared_bytes = sizeof(Layout);
    std::memset(machine.shared.data() + sizeof(Layout), fibers::kGuardByte, fibers::kGuard);
  }
  return *reinterpret_cast<Layout*>(machine.shared.data());
}

template <class Layout>
inline Layout& asked_memory() {
  static_assert(sizeof(Layout) <= fibers::kMostSharedBytes);
  fibers::Machine& machine = fibers::Machine::get();
  if (machine.asked_bytes != sizeof(Layout)) {
    std::fprintf(stderr, "%zu bytes of shared memory, asked for were %zu\n", sizeof(Layout), machine.asked_bytes);
    std::abort();
  }
  if (machine.shared_bytes == 0) {
    machine.shared_bytes = sizeof(Layout);
    std::memset(machine.shared.data() + sizeof(Layout), fibers::kGuardByte, fibers::kGuard);
  }
  return *reinterpret_cast<Layout*>(machine.shared.data());
}

inline void warp_barrier(int place = __builtin_LINE()) { fibers::exchange_all(0, place); }

}  // namespace spanbert

#include "fibers_matrix.h"
