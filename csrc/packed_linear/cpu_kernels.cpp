// x W^T + b + residual on a CPU, for few rows: the time is that of reading W once from memory.
//
// W lies in panels, in the order in which it is read (common/matrix.h), so that the memory works all the time. W in 16
// bits that are not multiplied as such is widened block by block, once for all rows of a row block.

#include <memory>
#include <type_traits>

#include "common/matrix.h"
#include "common/product.h"
#include "packed_linear/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

constexpr int64_t kRowBlock = 8 * kTileRows;
constexpr int64_t kWidened =
    128;  // columns of x whose weights are widened together: they stay in the first-level cache
constexpr int64_t kSummedDoubles = 256;

// Bias and residual, and the result in the storage type.
template <class S>
struct Finish {
  using A = typename Accumulator<S>::type;
  const LinearCall& call;

  void operator()(int64_t row, int64_t column, Vector<A> x) const {
    const int64_t place = row * call.out_features + column;
    if (call.out_features - column < lanes<A>) return last_columns(place, column, x);
    if (call.in_features == 0) x = Vector<A>{};
    if (call.bias) x += load(static_cast<const S*>(call.bias) + column);
    if (call.residual) x += load(static_cast<const S*>(call.residual) + place);
    store(static_cast<S*>(call.output) + place, x);
  }

 private:
  // Less than a vector of them: apart, since a tile has the lines above once a vector.
  [[gnu::noinline]] void last_columns(int64_t place, int64_t column, Vector<A> x) const {
    const auto count = static_cast<int>(call.out_features - column);
    if (call.in_features == 0) x = Vector<A>{};
    if (call.bias) x += load(static_cast<const S*>(call.bias) + column, count);
    if (call.residual) x += load(static_cast<const S*>(call.residual) + place, count);
    store(static_cast<S*>(call.output) + place, x, count);
  }
};

// Panels in the precision's own format.
template <class E, class S>
void multiply(const LinearCall& call, int64_t first, int64_t last) {
  const Matrix<E> matrix{call.out_features, call.in_features, static_cast<const char*>(call.panels), nullptr,
                         call.by_column};
  const Input input{static_cast<const char*>(call.x), call.x_row, call.x_scales};
  const Finish<S> finish{call};
  Product<E>{matrix, input, call.rows, first, last}.template run<!std::is_same_v<S, float16>>(
      [&](int64_t row, int64_t column, Vector<float> x) __attribute__((always_inline)) { finish(row, column, x); });
}

// Rows first .. first + rows - 1 of one panel's product in `sums`, with the result's columns from `column` on.
template <class S>
void finish_panel(const LinearCall& call, const typename Accumulator<S>::type* sums, int64_t width, int64_t column,
                  int64_t first, int64_t rows) {
  using A = typename Accumulator<S>::type;
  const Finish<S> finish{call};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width && column + c < call.out_features; c += lanes<A>) {
      finish(first + r, column + c, load(sums + r * width + c));
    }
  }
}

// Panels of 16 bits, products of float32.
template <class S>
void multiply_widened(const LinearCall& call, int64_t first, int64_t last) {
  alignas(64) float widened[kWidened * kTileColumns], sums[kRowBlock * kTileColumns];
  for (int64_t block = 0; block < call.rows; block += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, call.rows - block);
    const char* x = static_cast<const char*>(call.x) + block * call.x_row;
    for (int64_t panel = first; panel < last; ++panel) {
      const S* from = static_cast<const S*>(call.panels) + panel * call.in_features * kTileColumns;
      for (int64_t k = 0; k < call.in_features; k += kWidened) {
        const int64_t depth = std::min(kWidened, call.in_features - k), count = depth * kTileColumns;
        for (int64_t i = 0; i < count; i += kLanes) store(widened + i, load(from + i));
        from += count;
        const int64_t tiles = (rows + kTileRows - 1) / kTileRows, lines = count * int64_t{sizeof(S)} / kCacheLine;
        const int64_t times = std::max<int64_t>(1, depth / kPrefetchSteps);
        const int64_t each = (lines + times * tiles - 1) / (times * tiles);
        for (int64_t row = 0; row < rows; row += kTileRows) {
          const int64_t asked = row / kTileRows * times * each;
          kTiles<Float32>[kTileVectors - 1][std::min<int64_t>(kTileRows, rows - row)](
              x + row* call.x_row + k* kStepBytes, call.x_row, reinterpret_cast<const char*>(widened),
              kTileColumns* kStepBytes, depth, sums + row* kTileColumns, kTileColumns, k > 0,
              {reinterpret_cast<const char*>(from) + asked * kCacheLine, asked < lines ? each : 0});
        }
      }
      finish_panel<S>(call, sums, kTileColumns, panel * kTileColumns, block, rows);
    }
  }
}

void multiply_doubles(const LinearCall& call, int64_t first, int64_t last) {
  constexpr int64_t width = kPanel<double>;
  alignas(64) double sums[kRowBlock * width];
  const int64_t x_row = call.x_row / static_cast<int64_t>(sizeof(double));
  for (int64_t block = 0; block < call.rows; block += kRowBlock) {
    const int64_t rows = std::min(kRowBlock, call.rows - block);
    const double* x = static_cast<const double*>(call.x) + block * x_row;
    for (int64_t panel = first; panel < last; ++panel) {
      const double* weights = static_cast<const double*>(call.panels) + panel * call.in_features * width;
      for (int64_t k = 0; k < call.in_features; k += kSummedDoubles) {
        product_panel<double>(kVectors, rows, std::min(kSummedDoubles, call.in_features - k), x + k, x_row, 1, weights,
                              k, std::nullopt, sums, width, k > 0);
      }
      finish_panel<double>(call, sums, width, panel * width, block, rows);
    }
  }
}

}  // namespace

bool packed_linear_has(Precision precision) {
  bool has = false;
  with_precision(precision, [&](auto) { has = true; });
  return has;
}

int64_t packed_linear_width(Storage storage) { return storage == Storage::float64 ? kPanel<double> : kTileColumns; }

float packed_linear_prepare(Precision precision, Storage storage, const void* from, int64_t count, float* wide,
                            void* to) {
  float scale = 1;
  with_storage(storage, [&](auto s) {
    using S = decltype(s);
    if constexpr (!std::is_same_v<S, double>) {
      for (int64_t c = 0; c < count; c += kLanes) {
        const auto some = static_cast<int>(std::min<int64_t>(kLanes, count - c));
        store(wide + c, load_up_to(static_cast<const S*>(from) + c, some));
      }
    }
  });
  with_precision(precision, [&](auto e) {
    using T = typename decltype(e)::Element;
    if constexpr (std::is_same_v<T, uint8_t>) {
      scale = quantize_row(wide, count, static_cast<T*>(to));
    } else if constexpr (!std::is_same_v<T, float>) {
      round_row(wide, count, static_cast<T*>(to));
    }
  });
  return scale;
}

void packed_linear(const LinearCall& call, int64_t first, int64_t last) {
  with_storage(call.storage, [&](auto s) {
    using S = decltype(s);
    if constexpr (std::is_same_v<S, double>) {
      multiply_doubles(call, first, last);
    } else {
      with_precision(call.precision, [&](auto e) {
        using E = decltype(e);
        if constexpr (std::is_same_v<E, Float32> && !std::is_same_v<S, float>) {
          multiply_widened<S>(call, first, last);
        } else {
          multiply<E, S>(call, first, last);
        }
      });
    }
  });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
