#include "model_check.hpp"

#include <mujoco/mjxmacro.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace aime {
namespace {

bool is_one_of(const char* name, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* other) { return std::strcmp(name, other) == 0; });
}

// Whole numbers that a task may set freely, or within the limits that MuJoCo's own compiler keeps.
bool may_become(const char* name, int value, const mjModel* model) {
  if (is_one_of(name, {"geom_contype", "geom_conaffinity", "geom_priority", "geom_group", "site_group", "jnt_group",
                       "tendon_group", "actuator_group", "skin_group", "body_contype", "body_conaffinity"})) {
    return true;
  }
  if (is_one_of(name, {"geom_condim"})) return value == 1 || value == 3 || value == 4 || value == 6;
  if (is_one_of(name, {"geom_matid", "site_matid", "tendon_matid", "skin_matid"})) {
    return value >= -1 && value < model->nmat;
  }
  return false;
}

template <typename Number>
void check_field(const char* name, const Number* own, const Number* given, std::size_t count, const mjModel* model) {
  for (std::size_t entry = 0; entry < count; ++entry) {
    const auto* before =
        reinterpret_cast<const unsigned char*>(own + entry);  // bit for bit: -0 is a change, NaN is none
    const auto* after = reinterpret_cast<const unsigned char*>(given + entry);
    if (std::equal(before, before + sizeof(Number), after)) continue;
    bool sound = true;
    if constexpr (std::is_floating_point_v<Number>) {
      sound = std::isfinite(given[entry]);
    } else if constexpr (std::is_same_v<Number, int>) {
      sound = may_become(name, given[entry], model);
    } else if constexpr (sizeof(Number) > 1) {
      sound = false;  // addresses of 8 bytes; single bytes are flags, colours and characters
    }
    if (sound) continue;
    throw std::invalid_argument(std::string("a model change makes entry ") + std::to_string(entry) + " of " + name +
                                " " + std::to_string(given[entry]) + ", which this model cannot have");
  }
}

}  // namespace

void require_same_structure(const mjModel* base, const mjModel* changed) {
  const mjModel* m = base;  // the name that the macros below expect
  MJMODEL_POINTERS_PREAMBLE(m)
#define X(type, name, rows, columns)                  \
  check_field<type>(#name, base->name, changed->name, \
                    static_cast<std::size_t>(m->rows) * static_cast<std::size_t>(columns), m);
  MJMODEL_POINTERS
#undef X
}

}  // namespace aime
