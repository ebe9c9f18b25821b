#include "module_slots.hpp"

#include <pybind11/stl.h>

#include <vector>

#include "module_tensors.hpp"
#include "slot_iterations.hpp"

namespace py = pybind11;

namespace {

constexpr std::size_t kTensors = 2 + aime::kSlotWeights;  // inputs, slots, weights
constexpr std::size_t kLeastTensors = kTensors - 3;       // the biases of projections may be None

bool has_shape(const aime::View& view, std::initializer_list<std::int64_t> sizes) {
  return view.axes == sizes.size() && std::equal(sizes.begin(), sizes.end(), view.sizes.begin());
}

// Whether the shapes belong together; as _fits in kernels/slot_attention/op.py.
bool fit(const std::array<aime::View, kTensors>& views) {
  const aime::View &inputs = views[0], &slots = views[1];
  const aime::View* w = views.data() + 2;
  if (inputs.axes != 3 || slots.axes != 3 || inputs.sizes[0] != slots.sizes[0]) return false;
  if (inputs.sizes[1] == 0 || slots.sizes[1] == 0 || w[aime::kMlpInBias].axes != 1) return false;
  const std::int64_t c = inputs.sizes[2], d = slots.sizes[2], f = w[aime::kMlpInBias].sizes[0];
  const std::array<std::array<std::int64_t, 2>, aime::kSlotWeights> expected = {
      {{c, -1},     {c, -1}, {d, -1}, {d, -1}, {d, d},  {d, c}, {d, c},  {3 * d, d}, {3 * d, d}, {3 * d, -1},
       {3 * d, -1}, {d, -1}, {d, -1}, {f, d},  {f, -1}, {d, f}, {d, -1}, {d, -1},    {d, -1},    {d, -1}}};
  for (std::size_t i = 0; i < aime::kSlotWeights; ++i) {
    if (w[i].axes == 0) continue;  // absent
    const auto [first, second] = expected[i];
    if (!(second < 0 ? has_shape(w[i], {first}) : has_shape(w[i], {first, second}))) return false;
  }
  return true;
}

// 1 if the kernel takes the tensors as they are and one of them requires a gradient, 0 if none does, -1 where Python
// has to look closer.
int slot_check(const py::tuple& tensors) {
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  if (tensors.size() != kTensors) return -1;
  std::array<aime::View, kTensors> views;
  bool gradient = false;
  for (std::size_t i = 0; i < kTensors; ++i) {
    PyObject* const object = PyTuple_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i));
    if (object == Py_None && i >= kLeastTensors) continue;
    if (!aime::read_tensor(object, &views[i]) || views[i].axes == 0) return -1;
    const auto negated = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, is_neg));
    const auto wanted = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, requires_grad));
    if (!negated || !wanted) throw py::error_already_set();
    if (negated.ptr() != Py_False) return -1;
    gradient = gradient || wanted.ptr() == Py_True;
  }
  if (!fit(views)) return -1;
  return gradient ? 1 : 0;
}

aime::SlotArguments to_arguments(const py::tuple& tensors, const py::object& mask, std::int64_t iters, float eps,
                                 bool gelu) {
  if (tensors.size() != kTensors) throw py::type_error("slot_attention: expected inputs, slots and twenty weights");
  aime::SlotArguments arguments{};
  const auto view = [&](std::size_t i) {
    return aime::to_view(PyTuple_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i)));
  };
  arguments.inputs = view(0);
  arguments.slots = view(1);
  for (std::size_t i = 0; i < aime::kSlotWeights; ++i) arguments.weights[i] = view(2 + i);
  arguments.mask = aime::to_view(mask.ptr());
  arguments.iters = iters;
  arguments.eps = eps;
  arguments.gelu = gelu;
  return arguments;
}

float* to_floats(std::uintptr_t address) { return reinterpret_cast<float*>(address); }

void slot_attention(const py::tuple& tensors, const py::object& mask, std::int64_t iters, float eps, bool gelu,
                    std::uintptr_t slots, std::uintptr_t attention, std::uintptr_t saved, int threads,
                    const std::string& instructions) {
  const aime::SlotArguments arguments = to_arguments(tensors, mask, iters, eps, gelu);
  const py::gil_scoped_release release;
  aime::slot_iterations(arguments, {to_floats(slots), to_floats(attention), to_floats(saved)}, threads, instructions);
}

void slot_attention_backward(const py::tuple& tensors, const py::object& mask, std::int64_t iters, float eps, bool gelu,
                             const py::object& g_slots, const py::object& g_attention, std::uintptr_t saved,
                             bool implicit, const std::vector<std::uintptr_t>& gradients, int threads,
                             const std::string& instructions) {
  if (gradients.size() != kTensors) throw py::type_error("slot_attention_backward: expected 22 addresses");
  const aime::SlotArguments arguments = to_arguments(tensors, mask, iters, eps, gelu);
  aime::SlotArgumentGradients results{};
  results.slots = aime::to_view(g_slots.ptr());
  results.attention = aime::to_view(g_attention.ptr());
  results.saved = to_floats(saved);
  results.implicit = implicit;
  results.inputs = to_floats(gradients[0]);
  results.initial = to_floats(gradients[1]);
  for (std::size_t i = 0; i < aime::kSlotWeights; ++i) results.weights[i] = to_floats(gradients[2 + i]);
  const py::gil_scoped_release release;
  aime::slot_iterations_backward(arguments, results, threads, instructions);
}

}  // namespace

void define_slot_attention(py::module_& module) {
  module.def("read_tensors_by", &aime::read_tensors_by, py::arg("capsule"), py::arg("tensor"), py::arg("parameter"),
             "Read tensors of these types by the table in the capsule; whether it is of a version that is known.");
  module.def("slot_check", &slot_check, py::arg("tensors"),
             "1: the kernel takes these tensors and a gradient is wanted; 0: none is; -1: not known here.");
  module.def("slot_attention", &slot_attention, py::arg("tensors"), py::arg("mask"), py::arg("iters"), py::arg("eps"),
             py::arg("gelu"), py::arg("slots"), py::arg("attention"), py::arg("saved"), py::arg("threads"),
             py::arg("instructions") = "");
  module.def("slot_attention_backward", &slot_attention_backward, py::arg("tensors"), py::arg("mask"), py::arg("iters"),
             py::arg("eps"), py::arg("gelu"), py::arg("g_slots"), py::arg("g_attention"), py::arg("saved"),
             py::arg("implicit"), py::arg("gradients"), py::arg("threads"), py::arg("instructions") = "");
}
