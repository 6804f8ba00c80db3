// How a raw operator's kernel is given its arguments. A schema is flat; here, as in ops/operators.py, some of its
// arguments are one thing: a struct whose `fields` are theirs, in their order.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/tensors.h"

namespace spanbert {

using OptionalTensor = std::optional<Tensor>;

// ops/plans.py: SpanWork
struct SpanArguments {
  OptionalTensor starts, ends, rows, cu_seqlens, first, reach;
  int64_t num_spans = 0, max_width = 0;

  auto fields() { return std::tie(starts, ends, rows, cu_seqlens, first, reach, num_spans, max_width); }
};

// ops/philox.py: Dropout
struct DropoutArguments {
  double p = 0;
  OptionalTensor seed;

  auto fields() { return std::tie(p, seed); }
  // A word of Philox below it is dropped.
  uint32_t threshold() const { return static_cast<uint32_t>(std::min(p * 4294967296.0, 4294967295.0)); }
  // Where the seed is, on its device.
  const int64_t* seed_data() const {
    STD_TORCH_CHECK(seed && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                    "dropout needs one int64 seed");
    return seed->const_data_ptr<int64_t>();
  }
};

namespace boxing {

template <class T>
concept Several = requires(T& value) { value.fields(); };

template <class T>
constexpr size_t count_of() {
  if constexpr (Several<T>) {
    return std::tuple_size_v<decltype(std::declval<T&>().fields())>;
  } else {
    return 1;
  }
}

template <class T>
T take(StableIValue*& place) {
  if constexpr (Several<T>) {
    T value;
    std::apply([&](auto&... field) { ((field = take<std::decay_t<decltype(field)>>(place)), ...); }, value.fields());
    return value;
  } else {
    return torch::stable::detail::to<T>(*place++);
  }
}

template <class T>
void put(StableIValue* stack, const T& result) {
  *stack = torch::stable::detail::from<T>(result);
}
template <class... T>
void put(StableIValue* stack, const std::tuple<T...>& results) {
  std::apply([&](const T&... result) { (put(stack++, result), ...); }, results);
}

template <auto Function>
struct Box;
template <class Result, class... Parameters, Result (*Function)(Parameters...)>
struct Box<Function> {
  static void call(StableIValue* stack, uint64_t arguments, uint64_t) {
    constexpr size_t wanted = (0 + ... + count_of<std::decay_t<Parameters>>());
    STD_TORCH_CHECK(arguments == wanted, "the schema has ", arguments, " arguments, but the kernel takes ", wanted,
                    ": the compiled library is not of this version of the package");
    StableIValue* place = stack;
    // Braces: taken from left to right.
    const std::tuple<std::decay_t<Parameters>...> values{take<std::decay_t<Parameters>>(place)...};
    put(stack, std::apply(Function, values));
  }
};

}  // namespace boxing
}  // namespace spanbert

// What TORCH_BOX makes of a function of plain arguments.
#define SPANBERT_BOX(function) (&::spanbert::boxing::Box<(function)>::call)
