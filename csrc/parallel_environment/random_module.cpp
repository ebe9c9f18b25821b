#include "random_module.hpp"

#include <pybind11/numpy.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace aime {

py::tuple numpy_state(const RandomStream& stream) {
  py::array_t<std::uint32_t> key(static_cast<py::ssize_t>(stream.key.size()), stream.key.data());
  return py::make_tuple("MT19937", key, stream.position, static_cast<int>(stream.has_gauss), stream.cached_gaussian);
}

RandomStream parse_numpy_state(const py::tuple& state) {
  RandomStream stream;
  if (state.size() != 5 || std::string(py::str(state[0])) != "MT19937") {
    throw std::invalid_argument("a random state is numpy's (\"MT19937\", key, position, has_gauss, cached_gaussian)");
  }
  const auto key = py::array_t<std::uint32_t, py::array::c_style | py::array::forcecast>::ensure(state[1]);
  if (!key || key.size() != static_cast<py::ssize_t>(stream.key.size())) {
    throw std::invalid_argument("the key of a random state has " + std::to_string(stream.key.size()) + " words");
  }
  std::copy_n(key.data(), stream.key.size(), stream.key.begin());
  stream.position = state[2].cast<int>();
  stream.has_gauss = state[3].cast<int>() != 0;
  stream.cached_gaussian = state[4].cast<double>();
  return stream;
}

void bind_random_state(py::module_& module) {
  py::class_<RandomState>(module, "RandomState", "numpy.random.RandomState(int), as far as dm_control's resets use it.")
      .def(py::init<std::uint32_t>(), py::arg("seed"))
      .def("random", &RandomState::random)
      .def("uniform", &RandomState::uniform, py::arg("low"), py::arg("high"))
      .def("randn", &RandomState::randn)
      .def("randint", &RandomState::randint, py::arg("high"))
      .def("get_state", [](const RandomState& self) { return numpy_state(self.stream()); })
      .def(
          "set_state", [](RandomState& self, const py::tuple& state) { self.set_stream(parse_numpy_state(state)); },
          py::arg("state"));
}

}  // namespace aime
