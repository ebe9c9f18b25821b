// The Python face of the ray caster alone: pictures of any model, without environments.
#pragma once

#include <pybind11/pybind11.h>

namespace aime {

void bind_raycaster(pybind11::module_& module);

}  // namespace aime
