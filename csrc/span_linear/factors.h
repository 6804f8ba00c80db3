// What a walk over spans needs of a span or token besides the columns' values: the same for all columns.
#pragma once

#include <memory>

#include "common/vector.h"
#include "span_linear/call.h"

namespace spanbert {
namespace SPANBERT_ISA {

// Calls f with a value of the accumulator's type.
template <class F>
inline void with_accumulator(Storage storage, const F& f) {
  storage == Storage::float64 ? f(double{}) : f(float{});
}

// Groups first .. last - 1. A step is a token of a group; spans and steps are counted from the first group's.
template <class A>
struct Factors {
  struct Span {
    int64_t end, row, table_row;
    A inverse_width;
  };
  // Of a head at a step: what the forward multiplies the running sum and the token by, and what the backward, coming
  // from the right, multiplies the gathered gradient by.
  struct Step {
    A rescale, weight, gathered;
  };
  // Of a head at a span: 1 / z (0 where every score is -inf: such a span is like one of no token), and what the
  // backward multiplies the gradient gathered so far by.
  struct Pool {
    A inverse_total, release;
  };

  int64_t first, last, heads, first_span;
  int64_t widest_group = 0;               // spans
  std::unique_ptr<int64_t[]> first_step;  // of each group
  std::unique_ptr<Span[]> spans;
  std::unique_ptr<Step[]> steps;  // [steps, heads]
  std::unique_ptr<Pool[]> pools;  // [spans, heads]

  Factors(const ProjectedCall& call, int64_t first, int64_t last)
      : first(first), last(last), heads(call.heads), first_span(call.groups.first[first]) {
    const SpanGroups& groups = call.groups;
    const int64_t count = groups.first[last] - first_span;
    spans.reset(new Span[count]);
    first_step.reset(new int64_t[last - first + 1]);
    first_step[0] = 0;
    for (int64_t group = first; group < last; ++group) {
      const int64_t begin = groups.first[group], stop = groups.first[group + 1], start = groups.start[group];
      for (int64_t i = begin; i < stop; ++i) {
        const int64_t end = groups.end(group, i), row = groups.row(i);
        spans[i - first_span] = {end, row, call.table ? call.table_row(row, end - start) : 0, A(1) / A(end - start)};
      }
      widest_group = widest_group < stop - begin ? stop - begin : widest_group;
      first_step[group - first + 1] = first_step[group - first] + groups.end(group, stop - 1) - start;
    }
    if (heads == 0) return;
    steps.reset(new Step[first_step[last - first] * heads]);
    pools.reset(new Pool[count * heads]);
    for (int64_t group = first; group < last; ++group) {
      for (int64_t head = 0; head < heads; ++head) soften(call, group, head);
    }
  }

  const Span* spans_of(const SpanGroups& groups, int64_t group) const {
    return spans.get() + (groups.first[group] - first_span);
  }
  const Pool* pools_of(const SpanGroups& groups, int64_t group) const {
    return pools.get() + (groups.first[group] - first_span) * heads;
  }
  const Step* steps_of(int64_t group) const { return steps.get() + first_step[group - first] * heads; }

 private:
  // The online softmax (Milakov and Gimelshein 2018) of a group's tokens, and the way back: see span_pool.
  void soften(const ProjectedCall& call, int64_t group, int64_t head) {
    const SpanGroups& groups = call.groups;
    const int64_t start = groups.start[group];
    const A* scores = static_cast<const A*>(call.scores) + start * heads + head;
    const Span* own = spans_of(groups, group);
    const int64_t count = groups.first[group + 1] - groups.first[group];
    Step* step = steps.get() + first_step[group - first] * heads + head;
    Pool* pool = pools.get() + (groups.first[group] - first_span) * heads + head;
    A maximum = -INFINITY, total = 0;
    int64_t reached = start;
    for (int64_t i = 0; i < count; ++i) {
      for (; reached < own[i].end; ++reached) {
        const A score = scores[(reached - start) * heads];
        Step& here = step[(reached - start) * heads];
        if (score > maximum || score != score) {
          here.rescale = maximum == -INFINITY ? A(0) : std::exp(maximum - score);
          here.weight = 1 + (score - score);  // NaN for an infinite score, as softmax has it
          maximum = score;
        } else {
          here.rescale = 1;
          here.weight = score == -INFINITY ? A(0) : std::exp(score - maximum);
        }
        total = total * here.rescale + here.weight;
      }
      pool[i * heads] = {total == 0 ? A(0) : A(1) / total, maximum};  // the maximum waits here for the way back
    }
    A pivot = maximum;
    for (int64_t i = count - 1; i >= 0; --i) {
      A& release = pool[i * heads].release;
      const A narrower = pool[i * heads].inverse_total == 0 ? pivot : release;
      release = narrower == pivot ? A(1) : std::exp(narrower - pivot);
      pivot = narrower;
      for (const int64_t left = i > 0 ? own[i - 1].end : start; reached > left; --reached) {
        const A score = scores[(reached - 1 - start) * heads];
        step[(reached - 1 - start) * heads].gathered = score == -INFINITY ? A(0) : std::exp(score - pivot);
      }
    }
  }
};

}  // namespace SPANBERT_ISA
}  // namespace spanbert
