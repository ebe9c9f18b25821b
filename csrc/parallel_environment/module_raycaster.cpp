#include "module_raycaster.hpp"

#include "raycast_renderer.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace py = pybind11;

namespace aime {
namespace {

// One model's ray caster on the calling thread.
class PyRayCaster {
 public:
  PyRayCaster(std::uintptr_t model, int height, int width, int camera, int samples, const std::string& instructions) {
    settings_.height = height;
    settings_.width = width;
    settings_.camera = camera;
    settings_.segmentation = true;
    settings_.renderer = RendererKind::kRaycast;
    if (samples > 0) settings_.samples = samples;
    settings_.instructions = instructions;
    const auto* source = reinterpret_cast<const mjModel*>(model);  // NOLINT: handed over by MuJoCo's bindings
    renderer_ = std::make_unique<RaycastRenderer>(source, settings_, make_render_assets(source, settings_));
  }

  py::dict render(std::uintptr_t model, std::uintptr_t data) {
    const py::ssize_t height = settings_.height;
    const py::ssize_t width = settings_.width;
    py::array_t<std::uint8_t> pixels({height, width, static_cast<py::ssize_t>(3)});
    py::array_t<std::int32_t> segmentation({height, width});
    py::array_t<float> depth({height, width});
    Picture picture;
    picture.pixels = pixels.mutable_data();
    picture.segmentation = segmentation.mutable_data();
    picture.depth = depth.mutable_data();
    const auto* source = reinterpret_cast<const mjModel*>(model);  // NOLINT
    auto* state = reinterpret_cast<mjData*>(data);                 // NOLINT
    renderer_->render(source, state, picture);
    py::dict out;
    out["pixels"] = pixels;
    out["segmentation"] = segmentation;
    out["depth"] = depth;
    return out;
  }

  int samples() const { return settings_.samples; }
  std::string instruction_set() const { return renderer_->instruction_set(); }

 private:
  RenderSettings settings_;
  std::unique_ptr<RaycastRenderer> renderer_;
};

}  // namespace

void bind_raycaster(py::module_& module) {
  module.def("instruction_sets", &raycaster::instruction_sets);
  module.attr("DEFAULT_SAMPLES") = RenderSettings{}.samples;
  py::class_<PyRayCaster>(module, "RayCaster")
      .def(py::init<std::uintptr_t, int, int, int, int, const std::string&>(), py::kw_only(), py::arg("model"),
           py::arg("height"), py::arg("width"), py::arg("camera"), py::arg("samples"), py::arg("instruction_set"))
      .def("render", &PyRayCaster::render, py::arg("model"), py::arg("data"))
      .def("samples", &PyRayCaster::samples)
      .def("instruction_set", &PyRayCaster::instruction_set);
}

}  // namespace aime
