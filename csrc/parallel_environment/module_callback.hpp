// Tasks whose rules are Python: aime.envs.callbacks.TaskCallback as this library calls it.
#pragma once

#include "callback_task.hpp"

#include <pybind11/pybind11.h>

namespace aime {

// `callbacks`: None, or one aime.envs.callbacks.TaskCallback for each environment. Call it with the GIL.
TaskCallbacks parse_callbacks(const pybind11::object& callbacks);

}  // namespace aime
