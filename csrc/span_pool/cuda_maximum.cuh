// Maxima of sorted spans in 16 bits: a block takes a run of spans and 64 columns, eight lanes a span.
//
// A maximum may count a token twice. So the block makes, for each of its first 128 tokens, the maxima of the four and
// of the sixteen tokens from there on, in shared memory, and a span is covered by few of them, the last one moved back
// to its end: at most four of either for up to 64 tokens. What they leave, narrow spans and those that reach further,
// is read token by token.
//
// With winners a column's number is the upper half of a key, as a whole number of the same order (0 for -0, and NaN
// above all), and the lower half falls from token to token: the largest key is that of the first maximal token.
#pragma once

#include "span_pool/cuda_forward.cuh"

namespace spanbert {
namespace maxima {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;
constexpr int kTokens = 128;  // of the tables
constexpr int kPiece = 8;     // columns of a lane
constexpr int kAcross = 8;    // lanes of a span
constexpr int kTile = kPiece * kAcross;
constexpr int kMostSpans = 160;                     // of a block
constexpr int kSpans = kThreads / kAcross;          // at a time
constexpr int kOwn = kTokens * kAcross / kThreads;  // tokens whose maxima a thread makes
constexpr int kFour = 4, kSixteen = 16;
constexpr uint32_t kLast = 0xffff;

// Bytes of a winner are a template's argument, 0 without. Numbers of a lane: two in a word, or with winners a key.
template <int Winner>
constexpr int kPlanes = Winner > 0 ? 2 : 1;

struct alignas(16) Placed {
  int start, end, row, unused;  // from the block's first token on; no output row: -1
};

template <int Winner>
struct alignas(16) Shared {
  // A plane holds four words of each lane.
  uint32_t four[kPlanes<Winner>][kTokens][kAcross][4], sixteen[kPlanes<Winner>][kTokens][kAcross][4];
  Placed spans[kMostSpans];
  int low, count;
};

struct Words {
  uint32_t at[4];
};

template <class S, int Winner>
SPANBERT_DEVICE Words larger(const Words& a, const Words& b) {
  Words result;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Winner > 0) {
      result.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    } else {
      result.at[i] = larger_halves(a.at[i], b.at[i], S{});
    }
  }
  return result;
}
template <class S, int Winner>
SPANBERT_DEVICE Words larger(const Words& a, const Words& b, const Words& c) {
  if constexpr (Winner == 0) {
    return larger<S, Winner>(larger<S, Winner>(a, b), c);
  } else {
    Words result;
#pragma unroll
    for (int i = 0; i < 4; ++i) result.at[i] = largest_of(a.at[i], b.at[i], c.at[i]);
    return result;
  }
}

SPANBERT_DEVICE Words get(const uint32_t (&from)[4]) {
  Words words;
  get_words(from, words.at);
  return words;
}

// Whole numbers of the order of two numbers in a word.
template <class S>
SPANBERT_DEVICE uint32_t ordered(uint32_t word) {
  const uint32_t plain = plain_halves(word, S{});
  return plain ^ (sign_masks(plain) | 0x80008000u);
}
SPANBERT_DEVICE uint32_t unordered(uint32_t word) { return word ^ (~sign_masks(word) | 0x80008000u); }

// The lowest byte of each of four words.
SPANBERT_DEVICE uint32_t low_bytes(const Words& words) {
  const uint32_t low = pick_bytes(words.at[0], words.at[1], 0x0040),
                 high = pick_bytes(words.at[2], words.at[3], 0x0040);
  return pick_bytes(low, high, 0x5410);
}

// The four words of a plane from eight columns of a token.
template <class S, int Winner>
SPANBERT_DEVICE Words words_of(const Words& columns, int plane, int token) {
  Words words = columns;
#pragma unroll
  for (int i = 0; Winner > 0 && i < 4; i += 2) {
    const uint32_t two = ordered<S>(plane == 0 ? columns.at[i / 2] : columns.at[2 + i / 2]);
    const uint32_t last = kLast - static_cast<uint32_t>(token);
    words.at[i] = two << 16 | last;
    words.at[i + 1] = (two & 0xffff0000u) | last;
  }
  return words;
}

// Where a thread finds its columns of a token, counted from the block's first.
struct Source {
  const char* first;
  uint32_t stride;  // bytes

  SPANBERT_DEVICE Words columns(int token) const {
    Words words;
    load_words(first + uint64_t{static_cast<uint32_t>(token)} * stride, words.at);
    return words;
  }
};

// Maxima from each token of the block on. Of the tokens of two, the first few and the last few are shared.
template <class S, int Winner>
SPANBERT_DEVICE void fill_tables(const Source& source, Shared<Winner>& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kAcross, first = static_cast<int>(threadIdx.x) / kAcross * kOwn;
  const int last = shared.count - 1;
  for (int plane = 0; plane < kPlanes<Winner>; ++plane) {
    Words fours[kOwn + kSixteen - kFour];
    if (first <= last) {
      Words ones[kOwn + kFour - 1];
#pragma unroll
      for (int i = 0; i < kOwn + kFour - 1; ++i) {
        const int token = first + i < last ? first + i : last;
        ones[i] = words_of<S, Winner>(source.columns(token), plane, token);
      }
#pragma unroll
      for (int i = 0; i < kOwn; i += 2) {
        const Words common = larger<S, Winner>(ones[i + 1], ones[i + 2], ones[i + 3]);
        fours[i] = larger<S, Winner>(ones[i], common);
        fours[i + 1] = larger<S, Winner>(common, ones[i + 4]);
      }
#pragma unroll
      for (int i = 0; i < kOwn; ++i) put_words(shared.four[plane][first + i][lane], fours[i].at);
    }
    __syncthreads();
    if (first <= last) {
#pragma unroll
      for (int i = kOwn; i < kOwn + kSixteen - kFour; ++i) {
        fours[i] = get(shared.four[plane][first + i < last ? first + i : last][lane]);
      }
      static_assert(kOwn == 2 * kFour);
#pragma unroll
      for (int i = 0; i < kFour; ++i) {
        const Words common = larger<S, Winner>(fours[i + 4], fours[i + 8], fours[i + 12]);
        put_words(shared.sixteen[plane][first + i][lane], larger<S, Winner>(fours[i], common).at);
        put_words(shared.sixteen[plane][first + i + 4][lane], larger<S, Winner>(common, fours[i + 16]).at);
      }
    }
  }
}

// A span's result for eight columns, and with winners their tokens from its first on: as numbers, or as bytes.
template <int Winner>
struct Result {
  Words values;
  uint32_t tokens[Winner > 0 ? kPiece : 1];
};

// Token by token: of spans of up to `kLast` tokens, whose positions count from the span's first.
template <class S, int Winner>
SPANBERT_DEVICE void read_all(const Source& source, int start, int width, Words (&best)[kPlanes<Winner>]) {
#pragma unroll 1
  for (int i = 0; i < width; ++i) {
    const Words columns = source.columns(start + i);
#pragma unroll
    for (int plane = 0; plane < kPlanes<Winner>; ++plane) {
      const Words words = words_of<S, Winner>(columns, plane, i);
      best[plane] = i == 0 ? words : larger<S, Winner>(best[plane], words);
    }
  }
}

// The same of wider ones.
template <class S>
SPANBERT_DEVICE void read_wide(const Source& source, int start, int width, Result<4>& result) {
  forward::Winners<kPiece> best;
  forward::start_winners(best);
#pragma unroll 1
  for (int i = 0; i < width; ++i) {
    const Words columns = source.columns(start + i);
    Packed<S, kPiece> numbers;
#pragma unroll
    for (int w = 0; w < 4; ++w) numbers.words[w] = columns.at[w];
    forward::keep_larger(best, unpack(numbers), i);
  }
  const Packed<S, kPiece> packed = pack<S>(best.value);
#pragma unroll
  for (int w = 0; w < 4; ++w) result.values.at[w] = packed.words[w];
#pragma unroll
  for (int c = 0; c < kPiece; ++c) result.tokens[c] = static_cast<uint32_t>(best.token[c]);
}

// Numbers and tokens of keys whose positions count from `start`.
template <int Winner>
SPANBERT_DEVICE Result<Winner> result_of(const Words (&best)[kPlanes<Winner>], uint32_t start) {
  Result<Winner> result;
  if constexpr (Winner == 0) {
    result.values = best[0];
    return result;
  } else {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const Words& keys = best[w / 2];
      result.values.at[w] = unordered(pick_bytes(keys.at[w % 2 * 2], keys.at[w % 2 * 2 + 1], 0x7632));
    }
    if constexpr (Winner == 1) {
      // Of positions below 256 one byte tells all, and no byte borrows from another.
      const uint32_t first = (kLast - start & 0xff) * 0x01010101u;
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) result.tokens[plane] = first - low_bytes(best[plane]);
    } else {
#pragma unroll
      for (int c = 0; c < kPiece; ++c) result.tokens[c] = kLast - (best[c / 4].at[c % 4] & kLast) - start;
    }
    return result;
  }
}

template <int Winner>
SPANBERT_DEVICE void store_result(const PoolWork& work, int64_t row, int column, const Result<Winner>& result,
                                  void* output) {
  store_words(output, result.values.at);
  const int64_t place = row * work.columns + column;
  if constexpr (Winner == 1) {
    const uint32_t words[2] = {result.tokens[0], result.tokens[1]};
    store_words(static_cast<uint8_t*>(work.winners) + place, words);
  } else if constexpr (Winner == 4) {
#pragma unroll
    for (int i = 0; i < kPiece; i += 4) {
      const uint32_t words[4] = {result.tokens[i], result.tokens[i + 1], result.tokens[i + 2], result.tokens[i + 3]};
      store_words(static_cast<int32_t*>(work.winners) + place + i, words);
    }
  }
}

// The block's spans, by its first warp.
template <int Winner>
SPANBERT_DEVICE void find_spans(const PoolWork& work, int64_t first, int run, Shared<Winner>& shared) {
  constexpr int kEach = kMostSpans / kLanes;
  Span spans[kEach];
  long long low = work.spans.tokens, high = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int place = i * kLanes + lane_index();
    const bool there = place < run && first + place < work.spans.count;
    spans[i] = there ? span_at(work.spans, first + place) : Span{0, 0, -1};
    if (spans[i].empty()) continue;
    low = spans[i].start < low ? spans[i].start : low;
    high = spans[i].end > high ? spans[i].end : high;
  }
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const long long other_low = shuffle_xor(low, mask), other_high = shuffle_xor(high, mask);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (lane_index() == 0) {
    shared.low = static_cast<int>(low);
    shared.count = high <= low ? 0 : high - low < kTokens ? static_cast<int>(high - low) : kTokens;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const bool empty = spans[i].empty();
    shared.spans[i * kLanes + lane_index()] = {empty ? 0 : static_cast<int>(spans[i].start - low),
                                               empty ? 0 : static_cast<int>(spans[i].end - low),
                                               static_cast<int>(spans[i].row), 0};
  }
}

// `run` spans of a block, a multiple of 16; rows of `hidden` and of the maximum are multiples of 16 bytes.
template <class S, int Winner>
__global__ void __launch_bounds__(kThreads, Winner > 0 ? 3 : 4) sorted(PoolWork work, int run, unsigned tiles) {
  auto& shared = asked_memory<Shared<Winner>>();
  if (warp_index() == 0) find_spans(work, int64_t{blockIdx.x / tiles} * run, run, shared);
  __syncthreads();
  const int lane = lane_index() % kAcross;
  const int column = static_cast<int>(blockIdx.x % tiles) * kTile + lane * kPiece;
  const bool inside = column < work.columns;
  const Source source{reinterpret_cast<const char*>(static_cast<const S*>(work.hidden) +
                                                    shared.low * work.hidden_stride + (inside ? column : 0)),
                      static_cast<uint32_t>(work.hidden_stride * static_cast<int64_t>(sizeof(S)))};
  fill_tables<S, Winner>(source, shared);
  __syncthreads();

  for (int i = static_cast<int>(threadIdx.x) / kAcross; i < run; i += kSpans) {
    const Placed span = shared.spans[i];
    const int width = span.end - span.start, bits = width >= kSixteen ? 4 : 2, step = 1 << bits;
    const bool held = width >= kFour && span.end <= shared.count;
    // Steps of all spans of the warp: a span that needs fewer takes its last one again.
    int steps = held ? (width + step - 1) >> bits : 1;
    for (int mask = kAcross; mask < kLanes; mask *= 2) {
      const int other = shuffle_xor(steps, mask);
      steps = other > steps ? other : steps;
    }
    const auto& table = step == kSixteen ? shared.sixteen : shared.four;
    const int last = held ? span.end - step : 0;
    int token = held ? span.start : 0;
    Words best[kPlanes<Winner>];
#pragma unroll
    for (int plane = 0; plane < kPlanes<Winner>; ++plane) best[plane] = get(table[plane][token][lane]);
#pragma unroll 1
    for (int j = 1; j < steps; j += 2) {
      const int next = token + step < last ? token + step : last;
      token = next + step < last ? next + step : last;
#pragma unroll
      for (int plane = 0; plane < kPlanes<Winner>; ++plane) {
        best[plane] = larger<S, Winner>(best[plane], get(table[plane][next][lane]), get(table[plane][token][lane]));
      }
    }
    if (span.row < 0 || !inside) continue;
    if (!held) read_all<S, Winner>(source, span.start, width, best);
    Result<Winner> result = result_of<Winner>(best, static_cast<uint32_t>(held ? span.start : 0));
    if (width <= 0) result = {};
    if constexpr (Winner == 4) {
      if (width > static_cast<int>(kLast)) read_wide<S>(source, span.start, width, result);
    }
    S* row = static_cast<S*>(work.output) + span.row * work.output_columns + work.offset[kMax];
    store_result<Winner>(work, span.row, column, result, row + column);
  }
}

}  // namespace maxima
}  // namespace spanbert
