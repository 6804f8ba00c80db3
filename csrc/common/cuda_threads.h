// The language of the CUDA kernels: what the compiler for GPUs brings, and the few functions that stand for its
// intrinsics. Tests compile the same kernels with a plain C++ compiler and run a block's threads as fibers of one CPU
// thread (tests/cuda_on_cpu/fibers.h, which defines the same names), so kernels call nothing else.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/storage.h"

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SPANBERT_DEVICE __device__ __forceinline__

namespace spanbert {

constexpr unsigned kAllLanes = 0xffffffffu;

// Lanes of a warp: all 32 take part in each of these.
SPANBERT_DEVICE float shuffle(float value, int lane) { return __shfl_sync(kAllLanes, value, lane); }
SPANBERT_DEVICE int shuffle(int value, int lane) { return __shfl_sync(kAllLanes, value, lane); }
SPANBERT_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(kAllLanes, value, mask); }
SPANBERT_DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(kAllLanes, value, mask); }
SPANBERT_DEVICE long long shuffle_xor(long long value, int mask) { return __shfl_xor_sync(kAllLanes, value, mask); }
SPANBERT_DEVICE unsigned ballot(bool value) { return __ballot_sync(kAllLanes, value); }
SPANBERT_DEVICE int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
SPANBERT_DEVICE int count_bits(unsigned bits) { return __popc(bits); }

SPANBERT_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
SPANBERT_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
SPANBERT_DEVICE float to_float(float x) { return x; }
SPANBERT_DEVICE float to_float(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
SPANBERT_DEVICE float to_float(float16 x) { return __half2float(__ushort_as_half(x.bits)); }
SPANBERT_DEVICE void from_float(float x, float* to) { *to = x; }
SPANBERT_DEVICE void from_float(float x, bfloat16* to) { to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
SPANBERT_DEVICE void from_float(float x, float16* to) { to->bits = __half_as_ushort(__float2half_rn(x)); }

// The larger number; NaN if either is.
SPANBERT_DEVICE float larger(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// The same of two numbers in a word each.
SPANBERT_DEVICE uint32_t larger_halves(uint32_t a, uint32_t b, bfloat16) {
  uint32_t result;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
SPANBERT_DEVICE uint32_t larger_halves(uint32_t a, uint32_t b, float16) {
  uint32_t result;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

// 0xffff for each of the two that is negative.
SPANBERT_DEVICE uint32_t sign_masks(uint32_t word) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %1, 0xbb99;" : "=r"(result) : "r"(word));
  return result;
}

SPANBERT_DEVICE uint32_t largest_of(uint32_t a, uint32_t b, uint32_t c) { return __vimax3_u32(a, b, c); }

// Bytes 0 .. 3 of a and 4 .. 7 of b, one for each digit of the selector, the lowest first.
SPANBERT_DEVICE uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// Two numbers in a word with one zero and one NaN: x * 1 + 0 gives 0 for -0, and 0x7fff for any NaN.
SPANBERT_DEVICE uint32_t plain_halves(uint32_t word, bfloat16) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(word), "r"(0x3f803f80u), "r"(0u));
  return result;
}
SPANBERT_DEVICE uint32_t plain_halves(uint32_t word, float16) {
  uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(word), "r"(0x3c003c00u), "r"(0u));
  return result;
}

// Words of memory at once. What is loaded does not change while the kernel runs; what is stored is not read again.
SPANBERT_DEVICE void load_words(const void* from, uint32_t (&words)[4]) {
  const uint4 loaded = __ldg(static_cast<const uint4*>(from));
  words[0] = loaded.x, words[1] = loaded.y, words[2] = loaded.z, words[3] = loaded.w;
}
SPANBERT_DEVICE void load_words(const void* from, uint32_t (&words)[2]) {
  const uint2 loaded = __ldg(static_cast<const uint2*>(from));
  words[0] = loaded.x, words[1] = loaded.y;
}
SPANBERT_DEVICE void store_words(void* to, const uint32_t (&words)[4]) {
  __stcs(static_cast<uint4*>(to), make_uint4(words[0], words[1], words[2], words[3]));
}
SPANBERT_DEVICE void store_words(void* to, const uint32_t (&words)[2]) {
  __stcs(static_cast<uint2*>(to), make_uint2(words[0], words[1]));
}

// The same of shared memory, which is read again.
SPANBERT_DEVICE void get_words(const void* from, uint32_t (&words)[4]) {
  const uint4 loaded = *static_cast<const uint4*>(from);
  words[0] = loaded.x, words[1] = loaded.y, words[2] = loaded.z, words[3] = loaded.w;
}
SPANBERT_DEVICE void put_words(void* to, const uint32_t (&words)[4]) {
  *static_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}
SPANBERT_DEVICE void put_word(void* to, uint32_t word) { *static_cast<uint32_t*>(to) = word; }

// 16 bytes from memory to shared memory while the thread goes on, zeros where nothing is `there`. Copies since the last
// commit are one lot; a thread waits until at most `Lots` of its own are on their way, a block with a barrier behind
// it.
SPANBERT_DEVICE void copy_words(void* to, const void* from, bool there) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
SPANBERT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Lots>
SPANBERT_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Lots) : "memory");
}

// The block's shared memory, as the kernel's one structure.
template <class Layout>
SPANBERT_DEVICE Layout& shared_memory() {
  static_assert(sizeof(Layout) <= 48 * 1024, "more than every GPU gives without being asked");
  __shared__ __align__(16) unsigned char bytes[sizeof(Layout)];
  return reinterpret_cast<Layout&>(bytes);
}

// The same, of any size: the launch asks for it (SPANBERT_LAUNCH_SHARED).
template <class Layout>
SPANBERT_DEVICE Layout& asked_memory() {
  extern __shared__ __align__(16) unsigned char asked_bytes[];
  return reinterpret_cast<Layout&>(asked_bytes);
}

// The lanes of a warp wait for each other and see what each has written.
SPANBERT_DEVICE void warp_barrier() { __syncwarp(); }

// c += a b by a warp's tensor cores, 16 x 16 by 16 x 8; which lane holds what stands in cuda_matrix.h.
SPANBERT_DEVICE void multiply_halves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SPANBERT_DEVICE void multiply_halves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 numbers of 16 bits in shared memory, straight or transposed: lane 8 i + r names row r of
// matrix i, 16 aligned bytes; lane 4 g + t gets numbers 2 t and 2 t + 1 of row g of each.
SPANBERT_DEVICE void load_matrices(const void* row, uint32_t (&words)[4]) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}
SPANBERT_DEVICE void load_matrices_transposed(const void* row, uint32_t (&words)[4]) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

}  // namespace spanbert

#else
#include "fibers.h"
#endif

namespace spanbert {

constexpr int kLanes = 32;

SPANBERT_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kLanes; }
SPANBERT_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kLanes; }

// Over the lanes, in an order that does not change; every lane gets the result.
SPANBERT_DEVICE float warp_sum(float value) {
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
SPANBERT_DEVICE float warp_maximum(float value, int lanes = kLanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

}  // namespace spanbert
