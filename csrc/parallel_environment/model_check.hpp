// Whether a model that came from outside (a saved state) may be stepped and drawn in place of the task's own.
#pragma once

#include "mujoco_api.hpp"

namespace aime {

// Throws std::invalid_argument naming a field in which `changed` differs from `base` although it is the model's
// structure (sizes, addresses, kinds, references), or holds a number that is not finite. MuJoCo checks neither when it
// steps.
void require_same_structure(const mjModel* base, const mjModel* changed);

}  // namespace aime
