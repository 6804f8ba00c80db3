// Windows and terms by distance: attention/distance.h says how it works.

#include "attention/distance.h"
#include "document_attention/kernels.h"

namespace spanbert {
namespace SPANBERT_ISA {

void distance_attention_prepare(const DistanceCall& call, int64_t head, bool backward) {
  with_storage(call.attention.storage, [&](auto s) { ByDistance<decltype(s)>(call, head).prepare(backward); });
}

int64_t distance_attention_forward(const DistanceCall& call, const DistanceTask& task, int64_t head,
                                   const DistanceNext& next) {
  int64_t pairs = 0;
  with_storage(call.attention.storage,
               [&](auto s) { pairs = ByDistance<decltype(s)>(call, head, next).forward(task); });
  return pairs;
}

int64_t distance_attention_backward(const DistanceCall& call, const DistanceGrads& grads, const DistanceTask& task,
                                    int64_t part, int64_t head, const DistanceNext& next) {
  int64_t pairs = 0;
  with_storage(call.attention.storage,
               [&](auto s) { pairs = ByDistance<decltype(s)>(call, head, next).backward(task, grads, part); });
  return pairs;
}

void distance_attention_add_up(const DistanceCall& call, const DistanceGrads& grads, int64_t head) {
  with_storage(call.attention.storage, [&](auto s) { ByDistance<decltype(s)>(call, head).add_up(grads); });
}

}  // namespace SPANBERT_ISA
}  // namespace spanbert
