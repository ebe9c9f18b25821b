// aime.kernels._cpu: CPU kernels behind addresses, sizes and strides; Python checks them (kernels/*/cpp.py).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

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
               std::uintptr_t indices, std::uintptr_t distance, int threads, const std::string& instructions) {
  const aime::LookupArguments arguments{to_rows(std::move(rows)),
                                        head_stride,
                                        to_rows(std::move(codes)),
                                        codes_head_stride,
                                        row_count,
                                        heads,
                                        code_count,
                                        width,
                                        reinterpret_cast<std::int32_t*>(indices),
                                        reinterpret_cast<float*>(distance)};
  const py::gil_scoped_release release;
  aime::vq_lookup(arguments, threads, instructions);
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of AIME.";
  module.def("instruction_sets", &aime::instruction_sets, "Instruction sets this processor can run, best first.");
  module.def("vq_lookup", &vq_lookup, py::arg("rows"), py::arg("head_stride"), py::arg("codes"),
             py::arg("codes_head_stride"), py::arg("row_count"), py::arg("heads"), py::arg("code_count"),
             py::arg("width"), py::arg("indices"), py::arg("distance"), py::arg("threads"),
             py::arg("instructions") = "");
}
