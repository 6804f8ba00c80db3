// Philox4x32-10 (Salmon et al. 2011), as in ops/philox.py: key = seed, counter = (key index / 4, query index, head, 0),
// word `key index % 4`. Every backend drops the same entries.
#pragma once

#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>
#endif

// Everything here is inlined always: a copy made with one instruction set must not serve another.
#ifdef __CUDACC__
#define SPANBERT_ALWAYS_INLINE __host__ __device__ __forceinline__
#else
#define SPANBERT_ALWAYS_INLINE [[gnu::always_inline]] inline
#endif

namespace spanbert {

struct Words {
  uint32_t word[4];
};

SPANBERT_ALWAYS_INLINE Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

#ifdef __AVX2__
constexpr int kPhiloxKeys = 32;

// Words of 32 successive keys, the first a multiple of 4. A 64-bit lane holds a word; what is above it is ignored by
// the multiplications and cut off at the end.
#ifdef __AVX512F__
[[gnu::always_inline]] inline void philox_keys(uint32_t c0, uint32_t c1, uint32_t c2, uint64_t seed, uint32_t* words) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  __m512i x0 = _mm512_add_epi64(_mm512_set1_epi64(c0), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  __m512i x1 = _mm512_set1_epi64(c1), x2 = _mm512_set1_epi64(c2), x3 = _mm512_setzero_si512();
  constexpr int kExclusiveOr = 0x96;  // of three
  for (int round = 0; round < 10; ++round) {
    const __m512i a = _mm512_mul_epu32(x0, _mm512_set1_epi64(0xD2511F53));
    const __m512i b = _mm512_mul_epu32(x2, _mm512_set1_epi64(0xCD9E8D57));
    x0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(b, 32), x1, _mm512_set1_epi64(k0), kExclusiveOr);
    x2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(a, 32), x3, _mm512_set1_epi64(k1), kExclusiveOr);
    x1 = b;
    x3 = a;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  // Pairs of a counter's words, 0 1 and 2 3, in turns.
  const __m512i x01 = _mm512_mask_blend_epi32(0xaaaa, x0, _mm512_slli_epi64(x1, 32));
  const __m512i x23 = _mm512_mask_blend_epi32(0xaaaa, x2, _mm512_slli_epi64(x3, 32));
  const __m512i low = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), high = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
  _mm512_storeu_si512(words, _mm512_permutex2var_epi64(x01, low, x23));
  _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(x01, high, x23));
}
#else
[[gnu::always_inline]] inline void philox_keys(uint32_t c0, uint32_t c1, uint32_t c2, uint64_t seed, uint32_t* words) {
  for (int half = 0; half < 2; ++half, c0 += 4) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    __m256i x0 = _mm256_add_epi64(_mm256_set1_epi64x(c0), _mm256_set_epi64x(3, 2, 1, 0));
    __m256i x1 = _mm256_set1_epi64x(c1), x2 = _mm256_set1_epi64x(c2), x3 = _mm256_setzero_si256();
    for (int round = 0; round < 10; ++round) {
      const __m256i a = _mm256_mul_epu32(x0, _mm256_set1_epi64x(0xD2511F53));
      const __m256i b = _mm256_mul_epu32(x2, _mm256_set1_epi64x(0xCD9E8D57));
      x0 = _mm256_xor_si256(_mm256_srli_epi64(b, 32), _mm256_xor_si256(x1, _mm256_set1_epi64x(k0)));
      x2 = _mm256_xor_si256(_mm256_srli_epi64(a, 32), _mm256_xor_si256(x3, _mm256_set1_epi64x(k1)));
      x1 = b;
      x3 = a;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    // The four words of a counter side by side: 0 1 in the low halves, then 2 3.
    const __m256i x01 = _mm256_blend_epi32(x0, _mm256_slli_epi64(x1, 32), 0xaa);
    const __m256i x23 = _mm256_blend_epi32(x2, _mm256_slli_epi64(x3, 32), 0xaa);
    const __m256i even = _mm256_unpacklo_epi64(x01, x23), odd = _mm256_unpackhi_epi64(x01, x23);
    __m256i* to = reinterpret_cast<__m256i*>(words + 16 * half);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}
#endif
#endif

struct Dropout {
  bool active = false;
  uint64_t seed = 0;
  uint32_t threshold = 0;  // words below it are dropped
  double scale = 1;        // 1 / (1 - p)

  // factor(i) for keys first .. first + count - 1 of one query: 0 or `scale`.
  template <class A>
  [[gnu::always_inline]] void factors(int64_t head, int64_t query, int64_t first, int64_t count, A* factor) const {
    // Copies: the compiler does not know that `factor` is not where the members are, and would read them every time.
    const uint32_t least = threshold;
    const A kept = A(scale);
    const int64_t end = first + count;
#ifdef __AVX2__
    // Rounded down to a counter's first key: documents begin anywhere, and 32 words take no longer than two counters'.
    for (int64_t key = first & ~int64_t{3}; key < end; key += kPhiloxKeys) {
      uint32_t words[kPhiloxKeys];
      philox_keys(static_cast<uint32_t>(key >> 2), static_cast<uint32_t>(query), static_cast<uint32_t>(head), seed,
                  words);
      if (key >= first && key + kPhiloxKeys <= end) {
        for (int i = 0; i < kPhiloxKeys; ++i) factor[i] = words[i] >= least ? kept : A(0);
        factor += kPhiloxKeys;
      } else {
        const int64_t begin = first > key ? first - key : 0, last = end - key < kPhiloxKeys ? end - key : kPhiloxKeys;
        for (int64_t i = begin; i < last; ++i) *factor++ = words[i] >= least ? kept : A(0);
      }
    }
#else
    for (int64_t key = first; key < end;) {
      const Words words =
          philox(static_cast<uint32_t>(key >> 2), static_cast<uint32_t>(query), static_cast<uint32_t>(head), 0, seed);
      for (int64_t lane = key & 3; lane < 4 && key < end; ++lane, ++key) {
        *factor++ = words.word[lane] >= least ? kept : A(0);
      }
    }
#endif
  }
};

}  // namespace spanbert
