// The gradient of sums and means as a matrix product, in 16 bits: a block takes 32 tokens and goes through the sorted
// spans that hold one of them, through all columns. The left matrix holds 1, or 1 / width in two numbers of 16 bits,
// where a span holds a token; up to 256 spans of it are in shared memory at a time. The order of the additions is that
// of the spans, and nothing is shared between blocks.
//
// Inf and NaN are kept from other tokens as in the forward.
#pragma once

#include "span_pool/cuda_backward.cuh"
#include "span_pool/cuda_banded.cuh"

namespace spanbert {
namespace banded {

constexpr int kOwn = 32;      // tokens of a block
constexpr int kListed = 256;  // spans
constexpr int kPart = 32;     // columns of a warp
static_assert(kPart * kWarps == kChunk);

template <class S>
struct alignas(16) SharedBackward {
  S high[kOwn][kListed + kPad<S>], low[kOwn][kListed + kPad<S>];
  S grads[kStages][kDepth][kChunk + kPad<S>];
  S results[kWarps][kStep][kPart + kPad<S>];
  int start[kListed], end[kListed], row[kListed];  // bounds from the block's first token on
  uint32_t weight[kListed];                        // of a token, in two numbers
  int count;
  int64_t next;  // the first span after those listed
};

// Spans from `next` on that hold one of the tokens begin .. stop - 1, in their order, by the block's first warp.
template <class S>
SPANBERT_DEVICE void list_spans(const PoolWork& work, int64_t begin, int64_t stop, int64_t next, bool mean,
                                SharedBackward<S>& shared) {
  const int64_t last = work.spans.first[stop] < work.spans.count ? work.spans.first[stop] : work.spans.count;
  int count = 0;
  for (; next < last && count <= kListed - kLanes; next += kLanes) {
    SeenSpan mine{0, 0, 0};
    bool seen = false;
    if (next + lane_index() < last) {
      const Span span = span_at(work.spans, next + lane_index());
      seen = span.end > begin && span.start < stop && !span.empty() && span.row >= 0;
      mine = {static_cast<int>(span.start - begin), static_cast<int>(span.end - begin), static_cast<int>(span.row)};
    }
    const unsigned all = ballot(seen);
    if (seen) {
      const int place = count + count_bits(all & ((1u << lane_index()) - 1));
      const float weight = mean ? 1.0f / static_cast<float>(mine.high - mine.low) : 1.0f;
      S high;
      from_float(weight, &high);
      shared.start[place] = mine.low;
      shared.end[place] = mine.high;
      shared.row[place] = mine.row;
      shared.weight[place] = two_halves<S>(weight, weight - to_float(high));
    }
    count += count_bits(all);
  }
  for (int place = count + lane_index(); place < (count + kDepth - 1) / kDepth * kDepth; place += kLanes) {
    shared.start[place] = shared.end[place] = shared.row[place] = 0;
    shared.weight[place] = 0;
  }
  if (lane_index() == 0) shared.count = count, shared.next = next;
}

// What each token weighs in the listed spans: a warp takes a quarter of them, a lane a token.
template <class S>
SPANBERT_DEVICE void weigh_spans(SharedBackward<S>& shared) {
  static_assert(kOwn == kLanes);
  const int token = lane_index(), stop = (shared.count + kDepth - 1) / kDepth * kDepth;
  for (int first = warp_index() * kPiece; first < stop; first += kWarps * kPiece) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t two[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int span = first + 2 * i + j;
        const bool held = shared.start[span] <= token && token < shared.end[span];
        two[j] = held ? shared.weight[span] : 0;
      }
      high[i] = (two[0] & 0xffff) | two[1] << 16;
      low[i] = two[0] >> 16 | (two[1] & 0xffff0000u);
    }
    put_words(&shared.high[token][first], high);
    put_words(&shared.low[token][first], low);
  }
}

// One warp's columns of the block's tokens.
template <class S>
struct Gradient {
  static constexpr int kLefts = kOwn / kStep, kRights = kPart / kStep;

  const PoolWork& work;
  const backward::PoolGrads& grads;
  SharedBackward<S>& shared;
  const int64_t begin, stop;
  const int columns = warp_index() * kPart;
  Sums sums[kLefts][kRights];

  SPANBERT_DEVICE Gradient(const PoolWork& work, const backward::PoolGrads& grads, SharedBackward<S>& shared,
                           int64_t begin, int64_t stop)
      : work(work), grads(grads), shared(shared), begin(begin), stop(stop) {}

  SPANBERT_DEVICE void start() {
#pragma unroll
    for (int i = 0; i < kLefts * kRights; ++i) clear(sums[i / kRights][i % kRights]);
  }

  // `exact`: the weights are 1.
  SPANBERT_DEVICE void step(int stage, int span, bool exact) {
#pragma unroll
    for (int k = 0; k < kDepth; k += kStep) {
      Right<S> right[kRights];
#pragma unroll
      for (int n = 0; n < kRights; ++n) {
        right[n] = right_of_columns(&shared.grads[stage][k][columns + n * kStep], kChunk + kPad<S>);
      }
#pragma unroll
      for (int m = 0; m < kLefts; ++m) {
        const Left<S> high = left_of_rows(&shared.high[m * kStep][span + k], kListed + kPad<S>);
#pragma unroll
        for (int n = 0; n < kRights; ++n) multiply_add(sums[m][n], high, right[n]);
        if (exact) continue;
        const Left<S> low = left_of_rows(&shared.low[m * kStep][span + k], kListed + kPad<S>);
#pragma unroll
        for (int n = 0; n < kRights; ++n) multiply_add(sums[m][n], low, right[n]);
      }
    }
  }

  SPANBERT_DEVICE bool finite() const {
    float zero = 0;
#pragma unroll
    for (int j = 0; j < kLefts * kRights * 8; ++j) {
      zero = fmaf(sums[j / 8 / kRights][j / 8 % kRights].at[j / 4 % 2][j % 4], 0.0f, zero);
    }
    return ballot(zero != 0) == 0;  // NaN is not equal to anything
  }

  // The sums again, a column each lane, of the spans that hold a token alone.
  SPANBERT_DEVICE void write_exactly(int chunk) const {
    const int64_t place = int64_t{chunk} + columns + lane_index();
    const int64_t last = work.spans.first[stop] < work.spans.count ? work.spans.first[stop] : work.spans.count;
    for (int64_t token = begin; token < stop && place < work.columns; ++token) {
      float value = 0;
      for (int64_t i = work.spans.reach[begin] > 0 ? work.spans.reach[begin] : 0; i < last; ++i) {
        const Span span = span_at(work.spans, i);
        if (span.row < 0 || token < span.start || token >= span.end) continue;
        const S* row = static_cast<const S*>(grads.output) + span.row * grads.output_stride + place;
        if (work.has(kMean)) value += to_float(row[work.offset[kMean]]) / static_cast<float>(span.width());
        if (work.has(kSum)) value += to_float(row[work.offset[kSum]]);
      }
      from_float(value, static_cast<S*>(grads.hidden) + token * work.columns + place);
    }
  }

  SPANBERT_DEVICE void write(int chunk) {
    if (!finite()) return write_exactly(chunk);
    S(&results)[kStep][kPart + kPad<S>] = shared.results[warp_index()];
    constexpr int kPieces = kPart / kPiece;
#pragma unroll
    for (int m = 0; m < kLefts; ++m) {
      warp_barrier();
#pragma unroll
      for (int n = 0; n < kRights; ++n) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const float (&at)[4] = sums[m][n].at[i / 4];
          const uint32_t word = two_halves<S>(at[i % 4], at[i % 4 + 1]);
          put_word(&results[sum_row(i % 4)][n * kStep + sum_column(i / 4, i % 4)], word);
        }
      }
      warp_barrier();
#pragma unroll
      for (int i = 0; i < kStep * kPieces / kLanes; ++i) {
        const int index = i * kLanes + lane_index(), row = index / kPieces, column = index % kPieces * kPiece;
        const int64_t token = begin + m * kStep + row, place = int64_t{chunk} + columns + column;
        if (token >= stop || place >= work.columns) continue;
        uint32_t words[4];
        get_words(&results[row][column], words);
        store_words(static_cast<S*>(grads.hidden) + token * work.columns + place, words);
      }
    }
  }
};

// All steps through the listed spans for some chunks of columns, and after those of each, `use(chunk)`.
template <class S, class Use>
SPANBERT_DEVICE void multiply(Gradient<S>& gradient, int first, int chunks, int64_t offset, bool exact,
                              const Use& use) {
  SharedBackward<S>& shared = gradient.shared;
  const PoolWork& work = gradient.work;
  const int count = shared.count, steps = (count + kDepth - 1) / kDepth, all = steps * chunks;
  int ahead = 0, ahead_chunk = first, ahead_step = 0;
  const auto bring = [&] {
    if (ahead < all) {
      const S* from = static_cast<const S*>(gradient.grads.output) + offset + ahead_chunk;
      copy_rows(shared.grads[ahead % kStages], [&](int row, int column, S* to) {
        const int span = ahead_step * kDepth + row;
        const bool there = span < count && ahead_chunk + column < work.columns;
        copy_words(to, there ? from + shared.row[span] * gradient.grads.output_stride + column : from - offset, there);
      });
      if (++ahead_step == steps) ahead_step = 0, ahead_chunk += kChunk;
    } else {
      commit_copies();
    }
    ++ahead;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) bring();
  int i = 0;
  for (int chunk = first; chunk < first + chunks * kChunk; chunk += kChunk) {
    for (int step = 0; step < steps; ++step, ++i) {
      wait_for_copies<kStages - 2>();
      __syncthreads();
      bring();
      gradient.step(i % kStages, step * kDepth, exact);
    }
    use(chunk);
  }
  wait_for_copies<0>();
}

// `chunks` of the columns for a block; rows of the gradients are multiples of 16 bytes.
template <class S>
__global__ void __launch_bounds__(kThreads, 3)
    tokens(PoolWork work, backward::PoolGrads grads, int64_t chunks, int64_t shares) {
  auto& shared = asked_memory<SharedBackward<S>>();
  const int64_t begin = blockIdx.x / shares * kOwn;
  const int64_t stop = begin + kOwn < work.spans.tokens ? begin + kOwn : work.spans.tokens;
  const int64_t reach = work.spans.reach[begin] > 0 ? work.spans.reach[begin] : 0;
  const int64_t last = work.spans.first[stop] < work.spans.count ? work.spans.first[stop] : work.spans.count;
  const int first = static_cast<int>(blockIdx.x % shares * chunks) * kChunk;
  const int left = (static_cast<int>(work.columns) - first + kChunk - 1) / kChunk;
  const int own = left < chunks ? left : static_cast<int>(chunks);
  const auto list = [&](int64_t next, bool mean) {
    __syncthreads();  // the last ones are done with
    if (warp_index() == 0) list_spans(work, begin, stop, next, mean, shared);
    __syncthreads();
    weigh_spans(shared);
    __syncthreads();
  };

  Gradient<S> gradient(work, grads, shared, begin, stop);
  const bool mean = work.has(kMean);
  list(reach, mean);
  if (shared.next >= last && !(mean && work.has(kSum))) {  // the usual case: one list for all columns
    gradient.start();
    multiply(gradient, first, own, work.offset[mean ? kMean : kSum], !mean, [&](int chunk) {
      gradient.write(chunk);
      gradient.start();
    });
    return;
  }
  for (int chunk = first; chunk < first + own * kChunk; chunk += kChunk) {
    gradient.start();
    for (int part = kMean; part <= kSum; ++part) {
      if (work.offset[part] < 0) continue;
      for (int64_t next = reach; next < last; next = shared.next) {
        list(next, part == kMean);
        multiply(gradient, chunk, 1, work.offset[part], part == kSum, [](int) {});
      }
    }
    gradient.write(chunk);
  }
}

}  // namespace banded
}  // namespace spanbert
