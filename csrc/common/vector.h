// One SIMD vector, as wide as the instruction set's registers, through the compilers' vector extension: the same source
// gives AVX-512, AVX2 and plain code. Only for kernel files, which are compiled once per instruction set.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/storage.h"

#ifndef SPANBERT_ISA
#error "a kernel file is compiled with -DSPANBERT_ISA=<namespace>"
#endif

namespace spanbert {
namespace SPANBERT_ISA {

constexpr int kBytes = SPANBERT_VECTOR_BYTES;

template <class A>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kBytes)));
  typedef int32_t Mask __attribute__((vector_size(kBytes)));
  typedef uint32_t Bits __attribute__((vector_size(kBytes)));
  static constexpr int lanes = kBytes / 4;
};
template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kBytes)));
  typedef int64_t Mask __attribute__((vector_size(kBytes)));
  static constexpr int lanes = kBytes / 8;
};
typedef uint16_t HalfBits __attribute__((vector_size(kBytes / 2)));

template <class A>
using Vector = typename Simd<A>::Vector;
template <class A>
constexpr int lanes = Simd<A>::lanes;

template <class A>
inline Vector<A> broadcast(A value) {
  return value - Vector<A>{};  // value - 0 keeps -0.0
}

template <class V, class U>
inline V bits_as(const U& value) {
  static_assert(sizeof(V) == sizeof(U));
  V result;
  std::memcpy(&result, &value, sizeof(V));
  return result;
}

// Scalar conversions: also what the vector ones below do, lane by lane.

inline float to_accumulator(float x) { return x; }
inline double to_accumulator(double x) { return x; }
inline float to_accumulator(bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float to_accumulator(float16 x) {
  // A multiplication moves the exponent up by 112 and normalises the subnormals; all ones stay all ones.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const float scaled = bits_as<float>(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  return bits_as<float>(bits_as<uint32_t>(scaled) | special | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

template <class S>
inline S from_accumulator(typename Accumulator<S>::type x) {
  return x;
}
template <>
inline bfloat16 from_accumulator<bfloat16>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return {static_cast<uint16_t>(x != x ? 0x7fc0 : rounded)};
}
template <>
inline float16 from_accumulator<float16>(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // Below the smallest normal number: adding 0.5 leaves the subnormal's bits, correctly rounded, at the low end.
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00 : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00 : half;
  return {static_cast<uint16_t>(half | sign)};
}

// Vectors from and to memory. The partial forms touch `count` elements only; the other lanes read as 0.

inline Vector<float> load(const float* from) {
  Vector<float> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
inline Vector<double> load(const double* from) {
  Vector<double> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
inline Vector<float> load(const bfloat16* from) {
  HalfBits half;
  std::memcpy(&half, from, sizeof(half));
  return bits_as<Vector<float>>(__builtin_convertvector(half, Simd<float>::Bits) << 16);
}
inline Vector<float> load(const float16* from) {
  Vector<float> x;
  for (int i = 0; i < lanes<float>; ++i) x[i] = to_accumulator(from[i]);
  return x;
}
template <class S>
inline Vector<typename Accumulator<S>::type> load(const S* from, int count) {
  Vector<typename Accumulator<S>::type> x{};
  for (int i = 0; i < count; ++i) x[i] = to_accumulator(from[i]);
  return x;
}

inline void store(float* to, Vector<float> x) { std::memcpy(to, &x, sizeof(x)); }
inline void store(double* to, Vector<double> x) { std::memcpy(to, &x, sizeof(x)); }
inline void store(bfloat16* to, Vector<float> x) {
  typedef Simd<float>::Bits Bits;
  const Bits bits = bits_as<Bits>(x);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits nan = bits_as<Bits>(x != x);
  const HalfBits half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), HalfBits);
  std::memcpy(to, &half, sizeof(half));
}
inline void store(float16* to, Vector<float> x) {
  for (int i = 0; i < lanes<float>; ++i) to[i] = from_accumulator<float16>(x[i]);
}
template <class S>
inline void store(S* to, Vector<typename Accumulator<S>::type> x, int count) {
  for (int i = 0; i < count; ++i) to[i] = from_accumulator<S>(x[i]);
}

// Loads and stores that take the whole-vector form where `count` allows it.
template <class S>
inline auto load_up_to(const S* from, int count) {
  return count == lanes<typename Accumulator<S>::type> ? load(from) : load(from, count);
}
template <class S>
inline void store_up_to(S* to, Vector<typename Accumulator<S>::type> x, int count) {
  if (count == lanes<typename Accumulator<S>::type>) {
    store(to, x);
  } else {
    store(to, x, count);
  }
}

// Whole vectors past the caches, for results larger than those: the memory is then written without being read first.
// Addresses are multiples of kStreamBytes. End with `streamed()` before another thread reads.
#if defined(__x86_64__)
constexpr int64_t kStreamBytes = 16;
inline void stream_bits(void* to, const void* from, int64_t bytes) {
  if (bytes < kStreamBytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int64_t byte = 0; byte < bytes; byte += kStreamBytes) {
    const auto* piece = reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + byte);
    _mm_stream_si128(reinterpret_cast<__m128i*>(static_cast<char*>(to) + byte), _mm_loadu_si128(piece));
  }
}
inline void streamed() { _mm_sfence(); }
#else
constexpr int64_t kStreamBytes = 0;  // no such instruction
inline void stream_bits(void*, const void*, int64_t) {}
inline void streamed() {}
#endif

template <class S>
inline void stream(S* to, Vector<typename Accumulator<S>::type> x) {
  S bits[lanes<typename Accumulator<S>::type>];
  store(bits, x);
  stream_bits(to, bits, sizeof(bits));
}

inline Vector<float> absolute(Vector<float> x) {
  return bits_as<Vector<float>>(bits_as<Simd<float>::Bits>(x) & 0x7fffffffu);
}

// x, or `bound` where x is larger; NaN stays. One instruction, which the conditional is not.
inline Vector<float> at_most(Vector<float> x, float bound) {
#if defined(__x86_64__) && SPANBERT_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(bound), (__m512)x);
#elif defined(__x86_64__) && SPANBERT_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
#elif defined(__x86_64__)
  return (Vector<float>)_mm_min_ps(_mm_set1_ps(bound), (__m128)x);
#else
  return x > bound ? broadcast(bound) : x;
#endif
}

// Like torch.maximum: NaN wins, and of two equal values the first stays.
template <class V>
inline V larger(V first, V second) {
  return ((second > first) | (second != second)) ? second : first;
}

// Lane i gets that of i with bit `Step` flipped.
template <class A, int Step, std::size_t... Lane>
inline Vector<A> swap_lanes(Vector<A> x, std::index_sequence<Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (Lane ^ Step)...);
#else
  const typename Simd<A>::Mask from = {(Lane ^ Step)...};
  return __builtin_shuffle(x, from);
#endif
}

// Over the lanes, halves with halves.
template <class A, int Step = lanes<A> / 2>
inline A sum_of(Vector<A> x) {
  x += swap_lanes<A, Step>(x, std::make_index_sequence<lanes<A>>());
  if constexpr (Step > 1) return sum_of<A, Step / 2>(x);
  return x[0];
}
template <class A, int Step = lanes<A> / 2>
inline A largest_of(Vector<A> x) {
  x = larger(x, swap_lanes<A, Step>(x, std::make_index_sequence<lanes<A>>()));
  if constexpr (Step > 1) return largest_of<A, Step / 2>(x);
  return x[0];
}

// Lanes of two vectors: those of `first` and, where bit `Step` of the lane is set, those of `second` moved up by Step;
// with `Upper` those of `first` moved down and of `second` in place.
template <class A, int Step, bool Upper, std::size_t... Lane>
inline Vector<A> interleave(Vector<A> first, Vector<A> second, std::index_sequence<Lane...>) {
  constexpr int kLanes = lanes<A>, shift = Upper ? Step : 0;
#if defined(__clang__)
  return __builtin_shufflevector(first, second, ((Lane & Step) ? kLanes + Lane - Step + shift : Lane + shift)...);
#else
  const typename Simd<A>::Mask from = {((Lane & Step) ? kLanes + Lane - Step + shift : Lane + shift)...};
  return __builtin_shuffle(first, second, from);
#endif
}

// A square block, row by row: its off-diagonal quarters change places, then those of each quarter, and so on.
template <class A, int Step = lanes<A> / 2>
inline void transpose(Vector<A> (&rows)[lanes<A>]) {
  constexpr auto all = std::make_index_sequence<lanes<A>>();
  for (int r = 0; r < lanes<A>; ++r) {
    if (r & Step) continue;
    const Vector<A> first = rows[r], second = rows[r + Step];
    rows[r] = interleave<A, Step, false>(first, second, all);
    rows[r + Step] = interleave<A, Step, true>(first, second, all);
  }
  if constexpr (Step > 1) transpose<A, Step / 2>(rows);
}

// e^x for x <= 88, relative error below 2e-7; 0 where the result would be subnormal.
// x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts (Cody and Waite), polynomial as in Cephes' expf.
[[gnu::always_inline]] inline Vector<float> exponential(Vector<float> x) {
  typedef Vector<float> V;
  const V low = broadcast(-87.33654f);
  const V bounded = x < low ? low : x;
  const V shifted = bounded * 1.44269504f + 12582912.0f;  // the low bits of the sum are n, rounded
  const V n = shifted - 12582912.0f;
  const V r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  typedef Simd<float>::Bits Bits;
  const V power = bits_as<V>((bits_as<Bits>(shifted) - 0x4b400000u + 127u) << 23);  // 2^n
  return x < low ? V{} : p * power;
}
inline Vector<double> exponential(Vector<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
