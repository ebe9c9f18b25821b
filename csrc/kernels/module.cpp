// aime.kernels._cpu: CPU kernels behind addresses, sizes and strides; Python checks them (kernels/*/cpp.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "frame_error.hpp"
#include "frame_patches.hpp"
#include "instruction_set.hpp"
#include "latent_rollout.hpp"
#include "mixture_density.hpp"
#include "mixture_logistics.hpp"
#include "slot_attention.hpp"
#include "tensor_caster.hpp"
#include "vq_lookup.hpp"

namespace py = pybind11;

namespace {

// A tensor as Python describes it: address, dtype code, sizes and strides of the leading axes, stride of the last axis.
using Description = std::tuple<std::uintptr_t, int, std::vector<std::int64_t>, std::vector<std::int64_t>, std::int64_t>;

aime::Rows to_rows(Description description) {
  auto& [address, dtype, sizes, strides, stride] = description;
  return {reinterpret_cast<const void*>(address), static_cast<aime::Dtype>(dtype), std::move(sizes), std::move(strides),
          stride};
}

void vq_lookup(Description rows, std::int64_t head_stride, Description codes, std::int64_t codes_head_stride,
               std::int64_t row_count, std::int64_t heads, std::int64_t code_count, std::int64_t width,
               std::uintptr_t indices, std::uintptr_t distance, std::uintptr_t quantized, int threads,
               const std::string& instructions) {
  const aime::LookupArguments arguments{to_rows(std::move(rows)),
                                        head_stride,
                                        to_rows(std::move(codes)),
                                        codes_head_stride,
                                        row_count,
                                        heads,
                                        code_count,
                                        width,
                                        reinterpret_cast<std::int32_t*>(indices),
                                        reinterpret_cast<float*>(distance),
                                        reinterpret_cast<float*>(quantized)};
  const py::gil_scoped_release release;
  aime::vq_lookup(arguments, threads, instructions);
}

float* to_floats(std::uintptr_t address) { return reinterpret_cast<float*>(address); }

using Logistics = std::array<aime::Tensor, 6>;

aime::LogisticsInputs to_logistics(Logistics inputs) {
  return {std::move(inputs[0]), std::move(inputs[1]), std::move(inputs[2]),
          std::move(inputs[3]), std::move(inputs[4]), std::move(inputs[5])};
}

void mixture_logistics(Logistics inputs, const std::array<std::uintptr_t, 4>& outputs, int threads,
                       const std::string& instructions) {
  const aime::LogisticsInputs arguments = to_logistics(std::move(inputs));
  const py::gil_scoped_release release;
  aime::mixture_logistics(arguments,
                          {to_floats(outputs[0]), to_floats(outputs[1]), to_floats(outputs[2]), to_floats(outputs[3])},
                          threads, instructions);
}

void mixture_logistics_backward(Logistics inputs, std::array<aime::Tensor, 5> saved,
                                const std::array<std::uintptr_t, 4>& gradients, int threads,
                                const std::string& instructions) {
  const aime::LogisticsInputs arguments = to_logistics(std::move(inputs));
  const aime::LogisticsGradients results = {std::move(saved[0]),     std::move(saved[1]),     std::move(saved[2]),
                                            std::move(saved[3]),     std::move(saved[4]),     to_floats(gradients[0]),
                                            to_floats(gradients[1]), to_floats(gradients[2]), to_floats(gradients[3])};
  const py::gil_scoped_release release;
  aime::mixture_logistics_backward(arguments, results, threads, instructions);
}

using Density = std::array<aime::Tensor, 6>;

aime::DensityInputs to_density(Density inputs) {
  return {std::move(inputs[0]), std::move(inputs[1]), std::move(inputs[2]),
          std::move(inputs[3]), std::move(inputs[4]), std::move(inputs[5])};
}

void mixture_density(Density inputs, const std::array<std::uintptr_t, 2>& outputs, int threads,
                     const std::string& instructions) {
  const aime::DensityInputs arguments = to_density(std::move(inputs));
  const py::gil_scoped_release release;
  aime::mixture_density(arguments, {to_floats(outputs[0]), to_floats(outputs[1])}, threads, instructions);
}

void mixture_density_backward(Density inputs, std::array<aime::Tensor, 2> saved,
                              const std::array<std::uintptr_t, 6>& gradients, int threads,
                              const std::string& instructions) {
  const aime::DensityInputs arguments = to_density(std::move(inputs));
  const aime::DensityGradients results = {std::move(saved[0]),     std::move(saved[1]),     to_floats(gradients[0]),
                                          to_floats(gradients[1]), to_floats(gradients[2]), to_floats(gradients[3]),
                                          to_floats(gradients[4]), to_floats(gradients[5])};
  const py::gil_scoped_release release;
  aime::mixture_density_backward(arguments, results, threads, instructions);
}

using Sticks = std::array<aime::Tensor, 3>;

aime::StickInputs to_sticks(Sticks inputs) {
  return {std::move(inputs[0]), std::move(inputs[1]), std::move(inputs[2])};
}

void stick_log_weights(Sticks inputs, const std::array<std::uintptr_t, 3>& outputs, int threads,
                       const std::string& instructions) {
  const aime::StickInputs arguments = to_sticks(std::move(inputs));
  const py::gil_scoped_release release;
  aime::stick_log_weights(arguments, to_floats(outputs[0]), to_floats(outputs[1]), to_floats(outputs[2]), threads,
                          instructions);
}

void stick_log_weights_backward(Sticks inputs, std::array<aime::Tensor, 3> upstream,
                                const std::array<std::uintptr_t, 2>& gradients, int threads,
                                const std::string& instructions) {
  const aime::StickInputs arguments = to_sticks(std::move(inputs));
  const aime::StickGradients results = {std::move(upstream[0]), std::move(upstream[1]), std::move(upstream[2]),
                                        to_floats(gradients[0]), to_floats(gradients[1])};
  const py::gil_scoped_release release;
  aime::stick_log_weights_backward(arguments, results, threads, instructions);
}

using Slots = std::array<aime::Tensor, 4>;

aime::SlotInputs to_slots(Slots inputs, float eps) {
  return {std::move(inputs[0]), std::move(inputs[1]), std::move(inputs[2]), std::move(inputs[3]), eps};
}

void slot_attend(Slots inputs, float eps, const std::array<std::uintptr_t, 3>& outputs, int threads,
                 const std::string& instructions) {
  const aime::SlotInputs arguments = to_slots(std::move(inputs), eps);
  const py::gil_scoped_release release;
  aime::slot_attend(arguments, {to_floats(outputs[0]), to_floats(outputs[1]), to_floats(outputs[2])}, threads,
                    instructions);
}

void slot_attend_backward(Slots inputs, float eps, std::array<aime::Tensor, 3> upstream,
                          const std::array<std::uintptr_t, 3>& gradients, int threads,
                          const std::string& instructions) {
  const aime::SlotInputs arguments = to_slots(std::move(inputs), eps);
  const aime::SlotGradients results = {std::move(upstream[0]),  std::move(upstream[1]),  std::move(upstream[2]),
                                       to_floats(gradients[0]), to_floats(gradients[1]), to_floats(gradients[2])};
  const py::gil_scoped_release release;
  aime::slot_attend_backward(arguments, results, threads, instructions);
}

void frame_patches(std::array<aime::Tensor, 2> inputs, bool bytes, const std::array<std::uintptr_t, 2>& whitening,
                   std::int64_t patch, std::int64_t changes, std::uintptr_t patches, bool halves, int threads,
                   const std::string& instructions) {
  const aime::PatchInputs arguments = {std::move(inputs[0]),
                                       bytes,
                                       std::move(inputs[1]),
                                       to_floats(whitening[0]),
                                       to_floats(whitening[1]),
                                       patch,
                                       changes};
  const py::gil_scoped_release release;
  aime::frame_patches(arguments, reinterpret_cast<void*>(patches), halves, threads, instructions);
}

using Errors = std::array<aime::Tensor, 3>;

aime::ErrorInputs to_errors(Errors inputs, bool bytes, const std::array<std::uintptr_t, 2>& whitening) {
  return {std::move(inputs[0]),    std::move(inputs[1]),   std::move(inputs[2]), bytes,
          to_floats(whitening[0]), to_floats(whitening[1])};
}

void frame_error(Errors inputs, bool bytes, const std::array<std::uintptr_t, 2>& whitening, std::uintptr_t sums,
                 int threads, const std::string& instructions) {
  const aime::ErrorInputs arguments = to_errors(std::move(inputs), bytes, whitening);
  const py::gil_scoped_release release;
  aime::frame_error(arguments, to_floats(sums), threads, instructions);
}

void frame_error_backward(Errors inputs, bool bytes, const std::array<std::uintptr_t, 2>& whitening,
                          const aime::Tensor& upstream, std::uintptr_t gradient, int threads,
                          const std::string& instructions) {
  const aime::ErrorInputs arguments = to_errors(std::move(inputs), bytes, whitening);
  const py::gil_scoped_release release;
  aime::frame_error_backward(arguments, upstream, reinterpret_cast<void*>(gradient), threads, instructions);
}

// Everything of a rollout but its gradients: sizes as RolloutSizes has them, and addresses in the order of the structs.
struct Rollout {
  aime::RolloutSizes sizes;
  aime::RolloutWeights weights;
  aime::RolloutInputs inputs;
  aime::RolloutRecord record;
};

void* to_memory(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

Rollout to_rollout(const std::array<std::int64_t, 8>& s, bool bfloat16, const std::array<std::uintptr_t, 18>& weights,
                   const std::array<std::uintptr_t, 8>& inputs, const std::array<std::uintptr_t, 13>& record) {
  std::array<const float*, 18> w{};
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = to_floats(weights[i]);
  std::array<const float*, 8> x{};
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = to_floats(inputs[i]);
  const auto& r = record;
  return {{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], bfloat16},
          {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16],
           w[17]},
          {x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]},
          {to_floats(r[0]), to_floats(r[1]), to_memory(r[2]), to_memory(r[3]), to_memory(r[4]), to_floats(r[5]),
           to_floats(r[6]), to_floats(r[7]), to_floats(r[8]), to_floats(r[9]), to_floats(r[10]), to_floats(r[11]),
           reinterpret_cast<std::int32_t*>(r[12])}};
}

void latent_rollout(const std::array<std::int64_t, 8>& sizes, bool bfloat16,
                    const std::array<std::uintptr_t, 18>& weights, const std::array<std::uintptr_t, 8>& inputs,
                    const std::array<std::uintptr_t, 13>& record, const std::string& instructions) {
  const Rollout rollout = to_rollout(sizes, bfloat16, weights, inputs, record);
  const py::gil_scoped_release release;
  aime::latent_rollout(rollout.sizes, rollout.weights, rollout.inputs, rollout.record, instructions);
}

void latent_rollout_backward(const std::array<std::int64_t, 8>& sizes, bool bfloat16,
                             const std::array<std::uintptr_t, 18>& weights, const std::array<std::uintptr_t, 8>& inputs,
                             const std::array<std::uintptr_t, 13>& record, const std::array<std::uintptr_t, 11>& g,
                             const std::string& instructions) {
  const Rollout rollout = to_rollout(sizes, bfloat16, weights, inputs, record);
  const aime::RolloutGradients gradients = {to_floats(g[0]), to_floats(g[1]), to_memory(g[2]), to_memory(g[3]),
                                            to_memory(g[4]), to_floats(g[5]), to_floats(g[6]), to_floats(g[7]),
                                            to_floats(g[8]), to_floats(g[9]), to_floats(g[10])};
  const py::gil_scoped_release release;
  aime::latent_rollout_backward(rollout.sizes, rollout.weights, rollout.inputs, rollout.record, gradients,
                                instructions);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of AIME.";
  module.def("instruction_sets", &aime::instruction_sets, "Instruction sets this processor can run, best first.");
  module.def("peak_operations", &aime::peak_operations, py::arg("threads"), py::arg("instructions") = "",
             py::call_guard<py::gil_scoped_release>(), "float32 multiplications and additions a second, measured.");
  module.def("vq_lookup", &vq_lookup, py::arg("rows"), py::arg("head_stride"), py::arg("codes"),
             py::arg("codes_head_stride"), py::arg("row_count"), py::arg("heads"), py::arg("code_count"),
             py::arg("width"), py::arg("indices"), py::arg("distance"), py::arg("quantized"), py::arg("threads"),
             py::arg("instructions") = "");
  const auto inputs = py::arg("inputs");
  const auto outputs = py::arg("outputs");
  const auto saved = py::arg("saved");
  const auto gradients = py::arg("gradients");
  const auto threads = py::arg("threads");
  const auto instructions = py::arg("instructions") = "";
  module.def("mixture_logistics", &mixture_logistics, inputs, outputs, threads, instructions);
  module.def("mixture_logistics_backward", &mixture_logistics_backward, inputs, saved, gradients, threads,
             instructions);
  module.def("mixture_density", &mixture_density, inputs, outputs, threads, instructions);
  module.def("mixture_density_backward", &mixture_density_backward, inputs, saved, gradients, threads, instructions);
  module.def("stick_log_weights", &stick_log_weights, inputs, outputs, threads, instructions);
  module.def("stick_log_weights_backward", &stick_log_weights_backward, inputs, saved, gradients, threads,
             instructions);
  const auto eps = py::arg("eps");
  module.def("slot_attend", &slot_attend, inputs, eps, outputs, threads, instructions);
  module.def("slot_attend_backward", &slot_attend_backward, inputs, eps, saved, gradients, threads, instructions);
  const auto bytes = py::arg("bytes");
  const auto whitening = py::arg("whitening");
  module.def("frame_patches", &frame_patches, inputs, bytes, whitening, py::arg("patch"), py::arg("changes"), outputs,
             py::arg("halves"), threads, instructions);
  module.def("frame_error", &frame_error, inputs, bytes, whitening, outputs, threads, instructions);
  module.def("frame_error_backward", &frame_error_backward, inputs, bytes, whitening, saved, gradients, threads,
             instructions);
  const auto sizes = py::arg("sizes");
  const auto bfloat16 = py::arg("bfloat16");
  const auto weights = py::arg("weights");
  const auto record = py::arg("record");
  module.def("latent_rollout", &latent_rollout, sizes, bfloat16, weights, inputs, record, instructions);
  module.def("latent_rollout_backward", &latent_rollout_backward, sizes, bfloat16, weights, inputs, record, gradients,
             instructions);
}
