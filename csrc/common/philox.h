// Philox4x32-10 (Salmon et al. 2011), as in ops/philox.py: key = seed, counter = (key index / 4, query index, head, 0),
// word `key index % 4`. Every backend drops the same entries.
#pragma once

#include <cstdint>

namespace spanbert {

struct Words {
  uint32_t word[4];
};

inline Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
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

struct Dropout {
  bool active = false;
  uint64_t seed = 0;
  uint32_t threshold = 0;  // words below it are dropped
  double scale = 1;        // 1 / (1 - p)

  // factor(i) for keys first .. first + count - 1 of one query: 0 or `scale`.
  template <class A>
  void factors(int64_t head, int64_t query, int64_t first, int64_t count, A* factor) const {
    for (int64_t key = first; key < first + count;) {
      const Words words =
          philox(static_cast<uint32_t>(key >> 2), static_cast<uint32_t>(query), static_cast<uint32_t>(head), 0, seed);
      for (int64_t lane = key & 3; lane < 4 && key < first + count; ++lane, ++key) {
        *factor++ = words.word[lane] >= threshold ? A(scale) : A(0);
      }
    }
  }
};

}  // namespace spanbert
