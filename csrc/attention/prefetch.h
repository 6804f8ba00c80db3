// Prefetching of rows that are soon used, for kernel files.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "attention/call.h"

namespace spanbert {
namespace SPANBERT_ISA {
namespace {

// Prefetches rows, all heads of them, some at a time while something else is computed.
template <class S>
class Prefetch {
 public:
  Prefetch(int64_t head, int64_t heads, int64_t dim)
      : first(head * dim), bytes(heads * dim * static_cast<int64_t>(sizeof(S))), dim(dim) {}

  // Rows in which the heads do not lie side by side are left out.
  void add(const Rows& rows, const int64_t* indices, int64_t count) {
    if (rows.head != dim || count == 0) return;
    lists[used++] = {static_cast<const S*>(rows.data) + first, rows.row, indices, count};
    most = std::max(most, count);
  }

  // One of `parts` shares of all rows.
  void advance(int64_t parts) {
    for (done += most * used; row < most && done > 0; done -= parts) {
      const List& now = lists[list];
      if (row < now.count) {
        const char* line = reinterpret_cast<const char*>(now.from + now.indices[row] * now.row);
        for (const char* end = line + bytes; line < end; line += 64) __builtin_prefetch(line, 0, 2);
      }
      list = list + 1 == used ? 0 : list + 1;
      row += list == 0;
    }
  }

 private:
  struct List {
    const S* from;
    int64_t row;
    const int64_t* indices;
    int64_t count;
  };
  const int64_t first, bytes, dim;
  std::array<List, 4> lists;
  int64_t used = 0, most = 0, row = 0, list = 0, done = 0;
};

}  // namespace
}  // namespace SPANBERT_ISA
}  // namespace spanbert
