// The Python face of RandomState, and its state in numpy's form.
#pragma once

#include "random_state.hpp"

#include <pybind11/pybind11.h>

namespace aime {

// numpy's get_state(): ("MT19937", key, position, has_gauss, cached_gaussian).
pybind11::tuple numpy_state(const RandomStream& stream);
// Throws std::invalid_argument for anything else.
RandomStream parse_numpy_state(const pybind11::tuple& state);

void bind_random_state(pybind11::module_& module);

}  // namespace aime
