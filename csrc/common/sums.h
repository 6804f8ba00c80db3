// Long sums, of thousands of rows: gradients of what many spans or pairs read. One behind the other, each addend would
// be rounded to the precision of the whole sum. Only for kernel files.
#pragma once

#include <algorithm>
#include <memory>

#include "common/vector.h"

namespace spanbert {
namespace SPANBERT_ISA {

// Addends that may meet one behind the other in the accumulator: no more readers are of one row in usual calls.
constexpr int64_t kSumBlock = 64;

// Sums of some `rows`, `columns` wide: addends meet in blocks of Block, and the blocks' sums in double. The order is
// that of the addends alone.
template <class A, int64_t Block = kSumBlock>
class LongSums {
 public:
  LongSums(int64_t rows, int64_t columns)
      : columns_(columns),
        counts_(new int64_t[rows]()),
        blocks_(new A[rows * columns]()),
        totals_(new double[rows * columns]) {}

  // What a row's next addend is to be added to.
  A* next(int64_t row) {
    if (counts_[row] > 0 && counts_[row] % Block == 0) add_block(row);
    ++counts_[row];
    return block(row);
  }
  // A row's sum, once: the row must be cleared then.
  const A* sum(int64_t row) const {
    if (counts_[row] > Block) {
      for (int64_t c = 0; c < columns_; ++c) block(row)[c] = static_cast<A>(total(row)[c] + block(row)[c]);
    }
    return block(row);
  }
  void clear(int64_t row) {
    counts_[row] = 0;
    std::fill_n(block(row), columns_, A(0));
  }

 private:
  A* block(int64_t row) const { return blocks_.get() + row * columns_; }
  double* total(int64_t row) const { return totals_.get() + row * columns_; }

  void add_block(int64_t row) {
    double* to = total(row);
    if (counts_[row] == Block) std::fill_n(to, columns_, 0.0);
    for (int64_t c = 0; c < columns_; ++c) to[c] += block(row)[c];
    std::fill_n(block(row), columns_, A(0));
  }

  const int64_t columns_;
  const std::unique_ptr<int64_t[]> counts_;
  const std::unique_ptr<A[]> blocks_;
  const std::unique_ptr<double[]> totals_;
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
