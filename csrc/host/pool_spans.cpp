#include "host/pool_spans.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "host/rows.h"
#include "host/threads.h"

namespace spanbert::host {
namespace {

// To where a place is the one named, a number more.
template <class T, class Place>
void add_where(T* __restrict to, const T* __restrict each, const T* __restrict there, const Place* __restrict places,
               Place place, int64_t count) {
  for (int64_t c = 0; c < count; ++c) {
    const T more = there[c];
    to[c] += each[c] + (places[c] == place ? more : T(0));
  }
}

template <class T>
void pool_one(const T* hidden, int64_t size, int64_t start, int64_t end, const std::vector<Part>& parts, T* output) {
  for (const Part part : parts) {
    const T* first = hidden + start * size;
    const T* last = hidden + (end - 1) * size;
    std::memcpy(output, part == Part::end ? last : first, size * sizeof(T));
    if (part == Part::sum || part == Part::mean)
      for (const T* token = first + size; token <= last; token += size) add(output, token, size);
    if (part == Part::max)
      for (const T* token = first + size; token <= last; token += size) keep_largest(output, token, size);
    if (part == Part::mean) {
      const T width = T(end - start);
      for (int64_t c = 0; c < size; ++c) output[c] /= width;
    }
    output += size;
  }
}

// Some columns of the gradient, of all spans, one after the other.
template <class T>
class Columns {
 public:
  Columns(const T* hidden, int64_t size, int64_t begin, int64_t end, const std::vector<Part>& parts, T* grad_hidden)
      : hidden_(hidden + begin), grad_(grad_hidden + begin), size_(size), count_(end - begin), parts_(parts) {}

  void take(const T* grad, int64_t start, int64_t end) {
    const T* each = nullptr;     // what every token of the span gets
    const T* at_most = nullptr;  // what the largest gets, by column
    for (const Part part : parts_) {
      if (part == Part::start) add(grad_ + start * size_, grad, count_);
      if (part == Part::end) add(grad_ + (end - 1) * size_, grad, count_);
      if (part == Part::max) at_most = grad;
      if (part == Part::mean || part == Part::sum) {
        const T share = part == Part::mean ? T(1) / T(end - start) : T(1);
        for (int64_t c = 0; c < count_; ++c) evenly_[c] = (each ? evenly_[c] : T(0)) + grad[c] * share;
        each = evenly_.data();
      }
      grad += size_;
    }
    if (at_most == nullptr && each == nullptr) return;
    if (at_most == nullptr) {
      for (int64_t token = start; token < end; ++token) add(grad_ + token * size_, each, count_);
      return;
    }
    if (each == nullptr) {
      std::fill(evenly_.begin(), evenly_.end(), T(0));
      each = evenly_.data();
    }
    find_largest(start, end);
    for (int64_t token = start; token < end; ++token)
      add_where(grad_ + token * size_, each, at_most, places_.data(), Place(token - start), count_);
  }

 private:
  // As wide as the numbers, so that both fill the same vectors.
  using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

  void find_largest(int64_t start, int64_t end) {
    std::memcpy(best_.data(), hidden_ + start * size_, count_ * sizeof(T));
    std::fill(places_.begin(), places_.end(), Place(0));
    for (int64_t token = start + 1; token < end; ++token)
      keep_largest(best_.data(), places_.data(), Place(token - start), hidden_ + token * size_, count_);
  }

  const T* hidden_;
  T* grad_;
  const int64_t size_, count_;
  const std::vector<Part>& parts_;
  std::vector<T> evenly_ = std::vector<T>(count_), best_ = std::vector<T>(count_);
  std::vector<Place> places_ = std::vector<Place>(count_);
};

}  // namespace

template <class T>
void pool_spans(const T* hidden, int64_t size, const Spans& spans, const std::vector<Part>& parts, int64_t threads,
                T* output) {
  const int64_t row = size * int64_t(parts.size());
  share_rows(spans.count, std::min(threads, spans.count * row / MIN_SHARE), [&](int64_t n) {
    if (spans.ends[n] > spans.starts[n])
      pool_one(hidden, size, spans.starts[n], spans.ends[n], parts, output + n * row);
    else
      std::memset(output + n * row, 0, row * sizeof(T));
  });
}

template <class T>
void pool_spans_backward(const T* grad_output, const T* hidden, int64_t size, const Spans& spans,
                         const std::vector<Part>& parts, int64_t threads, T* grad_hidden) {
  const int64_t row = size * int64_t(parts.size());
  share_columns<T>(size, std::min(threads, spans.count * row / MIN_SHARE), [&](int64_t begin, int64_t end) {
    Columns<T> columns(hidden, size, begin, end, parts, grad_hidden);
    for (int64_t n = 0; n < spans.count; ++n)
      if (spans.ends[n] > spans.starts[n]) columns.take(grad_output + n * row + begin, spans.starts[n], spans.ends[n]);
  });
}

template void pool_spans(const float*, int64_t, const Spans&, const std::vector<Part>&, int64_t, float*);
template void pool_spans(const double*, int64_t, const Spans&, const std::vector<Part>&, int64_t, double*);
template void pool_spans_backward(const float*, const float*, int64_t, const Spans&, const std::vector<Part>&, int64_t,
                                  float*);
template void pool_spans_backward(const double*, const double*, int64_t, const Spans&, const std::vector<Part>&,
                                  int64_t, double*);

}  // namespace spanbert::host
