// The Python module `_host`: numpy arrays in and out, the interpreter's lock released while it works. The Python
// package spanbert_kernels.host checks the values and documents the functions.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>

#include "host/prune_spans.h"
#include "host/work_lists.h"

namespace py = pybind11;
using namespace spanbert;

namespace {

// Given as they are: converting is the Python package's business, and a silent copy would be none.
using Indices = py::array_t<int64_t, py::array::c_style>;
using Scores = py::array_t<double, py::array::c_style>;

void check_length(const char* name, const py::array& array, int64_t length) {
  if (array.ndim() != 1 || array.shape(0) != length)
    throw std::invalid_argument(std::string(name) + " must be one-dimensional, of length " + std::to_string(length));
}

Indices prune_spans(const Indices& starts, const Indices& ends, const Scores& scores, const Indices& budgets,
                    const Indices& documents, bool non_crossing) {
  const int64_t count = starts.size();
  check_length("starts", starts, count);
  check_length("ends", ends, count);
  check_length("scores", scores, count);
  check_length("documents", documents, count);
  const host::Candidates spans{count,         starts.data(),    ends.data(),
                               scores.data(), documents.data(), {budgets.data(), budgets.data() + budgets.size()}};
  std::vector<int64_t> kept;
  {
    py::gil_scoped_release unlocked;
    kept = host::prune_spans(spans, non_crossing);
  }
  Indices result(int64_t(kept.size()));
  std::copy(kept.begin(), kept.end(), result.mutable_data());
  return result;
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

}  // namespace

PYBIND11_MODULE(_host, module) {
  module.def("prune_spans", &prune_spans, py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("scores").noconvert(), py::arg("budgets").noconvert(), py::arg("documents").noconvert(),
             py::arg("non_crossing"));
  module.def("sort_spans", &sort_spans, py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("num_tokens"));
  module.def("first_and_reach", &first_and_reach, py::arg("starts").noconvert(), py::arg("ends").noconvert(),
             py::arg("num_tokens"));
}
