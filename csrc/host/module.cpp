// The Python module `_host`: numpy arrays in and out, the interpreter's lock released while it works. The Python
// package spanbert_kernels.host checks the values and documents the functions.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "host/add_spans.h"
#include "host/layers.h"
#include "host/pool_spans.h"
#include "host/prune_spans.h"
#include "host/span_masking.h"
#include "host/work_lists.h"

namespace py = pybind11;
using namespace spanbert;

namespace {

// Given as they are: converting is the Python package's business, and a silent copy would be none.
using Indices = py::array_t<int64_t, py::array::c_style>;
using Scores = py::array_t<double, py::array::c_style>;
using Flags = py::array_t<bool, py::array::c_style>;

void check_length(const char* name, const py::array& array, int64_t length) {
  if (array.ndim() != 1 || array.shape(0) != length)
    throw std::invalid_argument(std::string(name) + " must be one-dimensional, of length " + std::to_string(length));
}

void check_shape(const char* name, const py::array& array, int64_t rows, int64_t columns) {
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns)
    throw std::invalid_argument(std::string(name) + " must have shape [" + std::to_string(rows) + ", " +
                                std::to_string(columns) + "]");
}

Indices to_array(const std::vector<int64_t>& values) {
  Indices result(int64_t(values.size()));
  std::copy(values.begin(), values.end(), result.mutable_data());
  return result;
}

template <class T>
host::Column<T> column(const char* name, const py::array& array, int64_t length) {
  if (!py::isinstance<py::array_t<T>>(array)) throw py::type_error(std::string(name) + " has another dtype");
  check_length(name, array, length);
  return {array.data(), array.strides(0)};
}

// Groups of spans, and their budgets.
using Groups = std::vector<std::pair<Indices, Indices>>;

std::vector<int64_t> to_vector(const Indices& array) { return {array.data(), array.data() + array.size()}; }

template <class Index, class Score>
py::object prune(const py::array& starts, const py::array& ends, const py::array& scores, const Indices& budgets,
                 const std::optional<Indices>& documents, bool non_crossing, int64_t most_tokens,
                 const Groups& further) {
  const int64_t count = starts.size();
  if (documents) check_length("documents", *documents, count);
  std::vector<host::Limit> limits{{documents ? documents->data() : nullptr, to_vector(budgets)}};
  for (const auto& [groups, of_each] : further) {
    check_length("groups", groups, count);
    limits.push_back({groups.data(), to_vector(of_each)});
  }
  const host::Candidates<Index, Score> spans{count, column<Index>("starts", starts, count),
                                             column<Index>("ends", ends, count), column<Score>("scores", scores, count),
                                             std::move(limits)};
  std::optional<std::vector<int64_t>> kept;
  {
    py::gil_scoped_release unlocked;
    kept = host::prune_spans(spans, non_crossing, most_tokens);
  }
  if (!kept) return py::none();
  return to_array(*kept);
}

py::object prune_spans(const py::array& starts, const py::array& ends, const py::array& scores, const Indices& budgets,
                       const std::optional<Indices>& documents, bool non_crossing, int64_t most_tokens,
                       const Groups& further) {
  const bool narrow = py::isinstance<py::array_t<int32_t>>(starts), single = py::isinstance<py::array_t<float>>(scores);
  const auto kernel = narrow ? (single ? &prune<int32_t, float> : &prune<int32_t, double>)
                             : (single ? &prune<int64_t, float> : &prune<int64_t, double>);
  return kernel(starts, ends, scores, budgets, documents, non_crossing, most_tokens, further);
}

py::tuple sort_spans(const Indices& starts, const Indices& ends, int64_t num_tokens) {
  const int64_t count = starts.size();
  check_length("starts", starts, count);
  check_length("ends", ends, count);
  Indices sorted_starts(count), sorted_ends(count), rows(count);
  const int64_t *from = starts.data(), *to = ends.data();
  int64_t *sorted_from = sorted_starts.mutable_data(), *sorted_to = sorted_ends.mutable_data();
  int64_t* row = rows.mutable_data();
  {
    py::gil_scoped_release unlocked;
    host::sort_spans(count, num_tokens, from, to, sorted_from, sorted_to, row);
  }
  return py::make_tuple(sorted_starts, sorted_ends, rows);
}

py::tuple first_and_reach(const Indices& starts, const Indices& ends, int64_t num_tokens) {
  const int64_t count = starts.size();
  check_length("starts", starts, count);
  check_length("ends", ends, count);
  Indices first(num_tokens + 1), reach(num_tokens);
  const int64_t *from = starts.data(), *to = ends.data();
  int64_t *first_data = first.mutable_data(), *reach_data = reach.mutable_data();
  {
    py::gil_scoped_release unlocked;
    host::first_and_reach(count, num_tokens, from, to, first_data, reach_data);
  }
  return py::make_tuple(first, reach);
}

py::tuple mask_spans(const Indices& tokens, const Indices& bounds, const Flags& word_starts, uint64_t seed,
                     double budget, const Scores& cumulative, double mask_below, double random_below,
                     int64_t mask_token, const Indices& random_tokens) {
  check_length("tokens", tokens, tokens.size());
  check_length("cu_seqlens", bounds, std::max<int64_t>(bounds.size(), 1));
  check_length("word_starts", word_starts, tokens.size());
  if (bounds.data()[bounds.size() - 1] != tokens.size()) throw std::invalid_argument("cu_seqlens must end with T");
  static_assert(sizeof(bool) == 1);
  const host::Documents documents{bounds.size() - 1, bounds.data(), tokens.data(),
                                  reinterpret_cast<const uint8_t*>(word_starts.data())};
  const host::Masking masking{seed,         budget,     cumulative.size(),    cumulative.data(),   mask_below,
                              random_below, mask_token, random_tokens.size(), random_tokens.data()};
  Indices inputs(tokens.size());
  int64_t* data = inputs.mutable_data();
  host::MaskedSpans spans;
  {
    py::gil_scoped_release unlocked;
    spans = host::mask_spans(documents, masking, data);
  }
  return py::make_tuple(inputs, to_array(spans.starts), to_array(spans.ends));
}

template <class T>
using Rows = py::array_t<T, py::array::c_style>;

host::Spans to_spans(const Indices& starts, const Indices& ends) {
  check_length("ends", ends, starts.size());
  return {starts.size(), starts.data(), ends.data()};
}

std::vector<host::Part> to_parts(const std::vector<int>& codes) {
  std::vector<host::Part> parts(codes.size());
  std::transform(codes.begin(), codes.end(), parts.begin(), [](int code) { return host::Part(code); });
  return parts;
}

template <class T>
Rows<T> pool(const Rows<T>& hidden, const Indices& starts, const Indices& ends, const std::vector<int>& codes,
             int64_t threads) {
  const host::Spans spans = to_spans(starts, ends);
  const std::vector<host::Part> parts = to_parts(codes);
  const int64_t size = hidden.shape(1);
  Rows<T> output({spans.count, int64_t(parts.size()) * size});
  const T* from = hidden.data();
  T* to = output.mutable_data();
  {
    py::gil_scoped_release unlocked;
    host::pool_spans(from, size, spans, parts, threads, to);
  }
  return output;
}

template <class T>
Rows<T> pool_backward(const Rows<T>& grad_output, const Rows<T>& hidden, const Indices& starts, const Indices& ends,
                      const std::vector<int>& codes, int64_t threads) {
  const host::Spans spans = to_spans(starts, ends);
  const std::vector<host::Part> parts = to_parts(codes);
  const int64_t size = hidden.shape(1);
  check_shape("grad_output", grad_output, spans.count, int64_t(parts.size()) * size);
  Rows<T> grad_hidden({hidden.shape(0), size});
  const T *grad = grad_output.data(), *from = hidden.data();
  T* to = grad_hidden.mutable_data();
  {
    py::gil_scoped_release unlocked;
    std::fill(to, to + grad_hidden.size(), T(0));
    host::pool_spans_backward(grad, from, size, spans, parts, threads, to);
  }
  return grad_hidden;
}

template <class T>
void add(const Rows<T>& tokens, const Indices& starts, const Indices& ends, const std::vector<int>& codes,
         int64_t threads, Rows<T>& output) {
  const host::Spans spans = to_spans(starts, ends);
  const std::vector<host::Part> parts = to_parts(codes);
  const int64_t size = output.shape(1);
  if (output.shape(0) != spans.count || tokens.shape(1) != int64_t(parts.size()) * size)
    throw std::invalid_argument("output must have a row for each span, and tokens its columns for each part");
  const T* from = tokens.data();
  T* to = output.mutable_data();
  py::gil_scoped_release unlocked;
  host::add_spans(from, size, spans, parts, threads, to);
}

template <class T>
Rows<T> add_backward(const Rows<T>& grad_output, int64_t num_tokens, const Indices& starts, const Indices& ends,
                     const std::vector<int>& codes, int64_t threads) {
  const host::Spans spans = to_spans(starts, ends);
  const std::vector<host::Part> parts = to_parts(codes);
  const int64_t size = grad_output.shape(1);
  if (grad_output.shape(0) != spans.count) throw std::invalid_argument("grad_output must have a row for each span");
  Rows<T> grad_tokens({num_tokens, int64_t(parts.size()) * size});
  const T* grad = grad_output.data();
  T* to = grad_tokens.mutable_data();
  {
    py::gil_scoped_release unlocked;
    std::fill(to, to + grad_tokens.size(), T(0));
    host::add_spans_backward(grad, size, spans, parts, threads, to);
  }
  return grad_tokens;
}

template <class T>
py::tuple maxout(const Rows<T>& input, const Rows<T>& bias, int64_t pieces, int64_t threads) {
  if (pieces < 1 || input.shape(1) % pieces) throw std::invalid_argument("rows must have whole pieces");
  const int64_t rows = input.shape(0), size = input.shape(1) / pieces;
  check_length("bias", bias, input.shape(1));
  Rows<T> best({rows, size});
  Rows<int32_t> which({rows, size});
  const T *from = input.data(), *added = bias.data();
  T* to = best.mutable_data();
  int32_t* place = which.mutable_data();
  {
    py::gil_scoped_release unlocked;
    host::maxout(from, added, rows, size, pieces, threads, to, place);
  }
  return py::make_tuple(best, which);
}

template <class T>
py::tuple layer_norm(const Rows<T>& input, const Rows<T>& gain, const Rows<T>& shift, T epsilon, int64_t threads) {
  const int64_t rows = input.shape(0), size = input.shape(1);
  check_length("gain", gain, size);
  check_length("shift", shift, size);
  Rows<T> output({rows, size}), mean(rows), inverse(rows);
  const T *from = input.data(), *factors = gain.data(), *added = shift.data();
  T *to = output.mutable_data(), *middle = mean.mutable_data(), *root = inverse.mutable_data();
  {
    py::gil_scoped_release unlocked;
    host::layer_norm(from, factors, added, rows, size, epsilon, threads, to, middle, root);
  }
  return py::make_tuple(output, mean, inverse);
}

template <class T>
py::tuple layer_norm_backward(const Rows<T>& grad_output, const Rows<T>& input, const Rows<T>& gain,
                              const Rows<T>& mean, const Rows<T>& inverse, int64_t threads) {
  const int64_t rows = input.shape(0), size = input.shape(1);
  check_shape("grad_output", grad_output, rows, size);
  check_length("gain", gain, size);
  check_length("mean", mean, rows);
  check_length("inverse", inverse, rows);
  Rows<T> grad_input({rows, size}), grad_gain(size), grad_shift(size);
  const T *grad = grad_output.data(), *from = input.data(), *factors = gain.data(), *middle = mean.data();
  const T* root = inverse.data();
  T *to = grad_input.mutable_data(), *of_gain = grad_gain.mutable_data(), *of_shift = grad_shift.mutable_data();
  {
    py::gil_scoped_release unlocked;
    std::fill(of_gain, of_gain + size, T(0));
    std::fill(of_shift, of_shift + size, T(0));
    host::layer_norm_backward(grad, from, factors, middle, root, rows, size, threads, to, of_gain, of_shift);
  }
  return py::make_tuple(grad_input, grad_gain, grad_shift);
}

template <class T>
void define_layers(py::module_& module) {
  module.def("maxout", &maxout<T>, py::arg("rows").noconvert(), py::arg("bias").noconvert(), py::arg("pieces"),
             py::arg("threads"));
  module.def("layer_norm", &layer_norm<T>, py::arg("rows").noconvert(), py::arg("gain").noconvert(),
             py::arg("shift").noconvert(), py::arg("epsilon"), py::arg("threads"));
  module.def("layer_norm_backward", &layer_norm_backward<T>, py::arg("grad_output").noconvert(),
             py::arg("rows").noconvert(), py::arg("gain").noconvert(), py::arg("mean").noconvert(),
             py::arg("inverse").noconvert(), py::arg("threads"));
}

template <class T>
void define_pooling(py::module_& module) {
  module.def("add_spans", &add<T>, py::arg("tokens").noconvert(), py::arg("starts").noconvert(),
             py::arg("ends").noconvert(), py::arg("parts"), py::arg("threads"), py::arg("output").noconvert());
  module.def("add_spans_backward", &add_backward<T>, py::arg("grad_output").noconvert(), py::arg("num_tokens"),
             py::arg("starts").noconvert(), py::arg("ends").noconvert(), py::arg("parts"), py::arg("threads"));
  module.def("pool_spans", &pool<T>, py::arg("hidden").noconvert(), py::arg("starts").noconvert(),
             py::arg("ends").noconvert(), py::arg("parts"), py::arg("threads"));
  module.def("pool_spans_backward", &pool_backward<T>, py::arg("grad_output").noconvert(),
             py::arg("hidden").noconvert(), py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("parts"), py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.def("prune_spans", &prune_spans, py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("scores").noconvert(), py::arg("budgets").noconvert(), py::arg("documents").noconvert(),
             py::arg("non_crossing"), py::arg("most_tokens"), py::arg("further").noconvert() = Groups());
  module.def("sort_spans", &sort_spans, py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("num_tokens"));
  module.def("first_and_reach", &first_and_reach, py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("num_tokens"));
  module.def("mask_spans", &mask_spans, py::arg("tokens").noconvert(), py::arg("cu_seqlens").noconvert(),
             py::arg("word_starts").noconvert(), py::arg("seed"), py::arg("budget"), py::arg("cumulative").noconvert(),
             py::arg("mask_below"), py::arg("random_below"), py::arg("mask_token"),
             py::arg("random_tokens").noconvert());
  define_pooling<float>(module);
  define_pooling<double>(module);
  define_layers<float>(module);
  define_layers<double>(module);
}
