// Reads a tensor of PyTorch's where it is, by the table of C functions that its type offers for exchange (DLPack 1.3,
// `__dlpack_c_exchange_api__`): some 30 ns, where asking it for address, sizes and strides in Python takes 300.
#pragma once

#include <pybind11/pybind11.h>

#include "slot_iterations.hpp"

namespace aime {

// Types whose instances are read (torch.Tensor and torch.nn.Parameter, no subclass), and the capsule with the table.
// Returns whether the table is one that this can use.
bool read_tensors_by(const pybind11::object& capsule, const pybind11::type& tensor, const pybind11::type& parameter);

// Of a tensor in memory, float32, bfloat16 or float16, of up to three axes; false for everything else, without an
// error.
bool read_tensor(PyObject* object, View* view);

// The same of a tensor, a description (address, dtype code, sizes, strides), or None, which is absent.
// Throws TypeError for anything else.
View to_view(PyObject* object);

}  // namespace aime
