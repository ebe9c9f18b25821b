#pragma once

#include <pybind11/pybind11.h>

void define_slot_attention(pybind11::module_& module);
