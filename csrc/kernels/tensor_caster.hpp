// How a Python description of a tensor, (address, dtype code, sizes, strides), becomes an aime::Tensor.
//
// pybind11's own casters of tuples and vectors make a Python object of every item and ask it for its type by turns; for
// the six tensors of a call that was most of its time on small ones (docs/kernels/host.md).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "strided.hpp"

namespace pybind11::detail {

template <>
struct type_caster<aime::Tensor> {
  PYBIND11_TYPE_CASTER(aime::Tensor, const_name("tuple[int, int, Sequence[int], Sequence[int]]"));

  bool load(handle source, bool /*convert*/) {
    PyObject* description = source.ptr();
    if (!PyTuple_Check(description) || PyTuple_GET_SIZE(description) != 4) return false;
    const std::size_t address = PyLong_AsSize_t(PyTuple_GET_ITEM(description, 0));
    const long dtype = PyLong_AsLong(PyTuple_GET_ITEM(description, 1));
    if (PyErr_Occurred() != nullptr) return refuse();
    if (dtype < 0 || dtype > static_cast<long>(aime::Dtype::kFloat16)) return false;
    value.data = reinterpret_cast<const void*>(address);
    value.dtype = static_cast<aime::Dtype>(dtype);
    return numbers(PyTuple_GET_ITEM(description, 2), value.sizes) &&
           numbers(PyTuple_GET_ITEM(description, 3), value.strides) && value.sizes.size() == value.strides.size();
  }

 private:
  // An error of Python becomes pybind11's own, which names the types that were expected.
  static bool refuse() {
    PyErr_Clear();
    return false;
  }

  static bool numbers(PyObject* tuple, std::vector<std::int64_t>& to) {
    if (!PyTuple_Check(tuple)) return false;
    const Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    to.resize(static_cast<std::size_t>(count));
    for (Py_ssize_t axis = 0; axis < count; ++axis) {
      to[static_cast<std::size_t>(axis)] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, axis));
    }
    return PyErr_Occurred() == nullptr || refuse();
  }
};

}  // namespace pybind11::detail
