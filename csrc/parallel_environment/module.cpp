// The Python face of the batch: thin, typed, and with the GIL released while environments run.
#include "batch.hpp"
#include "random_module.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>

namespace py = pybind11;

namespace aime {
namespace {

using Actions = py::array_t<double, py::array::c_style | py::array::forcecast>;

template <typename Struct>
const Struct* pointer(std::uintptr_t address) {
  return reinterpret_cast<const Struct*>(address);  // NOLINT: the address is the hand-over from MuJoCo's bindings
}

Quality parse_quality(const std::string& name) {
  if (name == "exact") return Quality::kExact;
  if (name == "high") return Quality::kHigh;
  if (name == "fast") return Quality::kFast;
  throw std::invalid_argument("quality must be 'exact', 'high' or 'fast', not '" + name + "'");
}

// A view without a copy; `owner` keeps the memory alive.
template <typename Number>
py::array view(const std::vector<Number>& values, std::vector<py::ssize_t> shape, const py::object& owner) {
  return py::array_t<Number>(std::move(shape), values.data(), owner);
}

py::capsule owner_of(std::shared_ptr<const Results> results) {
  auto* held = new std::shared_ptr<const Results>(std::move(results));  // NOLINT: the capsule deletes it
  return py::capsule(held, [](void* pointer) { delete static_cast<std::shared_ptr<const Results>*>(pointer); });
}

// Marks a batch as in use by one Python thread; a second one is an error instead of a race.
class Use {
 public:
  explicit Use(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true)) throw std::runtime_error("another thread is using this environment");
  }
  ~Use() { busy_.store(false); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  std::atomic<bool>& busy_;
};

class PyBatch {
 public:
  PyBatch(std::uintptr_t model, const std::string& domain, const std::string& task, int num_envs, int num_threads,
          int substeps, double step_limit, int action_repeat, int height, int width, int camera,
          const std::string& quality, bool segmentation) {
    BatchSettings settings;
    settings.domain = domain;
    settings.task = task;
    settings.num_envs = num_envs;
    settings.num_threads = num_threads;
    settings.substeps = substeps;
    settings.step_limit = step_limit;
    settings.action_repeat = action_repeat;
    settings.render = {height, width, camera, parse_quality(quality), segmentation};
    batch_ = std::make_unique<Batch>(pointer<mjModel>(model), settings);
  }

  Batch& batch() {
    if (!batch_) throw std::runtime_error("the environment is closed");
    if (batch_->forked()) {
      throw std::runtime_error(
          "this environment was made before a fork: its threads and GL contexts exist in the parent only. "
          "Make the environment in the child, or start processes with the 'spawn' method");
    }
    return *batch_;
  }

  void close() {
    const Use use(busy_);
    const py::gil_scoped_release release;
    batch_.reset();
  }

  void load(int env, std::uintptr_t model, std::uintptr_t data) {
    batch().load(env, pointer<mjModel>(model), pointer<mjData>(data));
  }

  void run(const Actions& actions, const py::array_t<std::uint8_t>& commands) {
    Batch& target = batch();
    const auto envs = static_cast<py::ssize_t>(target.settings().num_envs);
    const auto size = static_cast<py::ssize_t>(target.model().nu);
    if (actions.ndim() != 2 || actions.shape(0) != envs || actions.shape(1) != size || commands.size() != envs) {
      throw std::invalid_argument("actions must have shape (num_envs, action_size)");
    }
    std::vector<Command> parsed(static_cast<std::size_t>(envs));
    for (py::ssize_t env = 0; env < envs; ++env) {
      parsed[static_cast<std::size_t>(env)] = static_cast<Command>(commands.at(env));
    }
    const double* values = actions.data();
    const Use use(busy_);
    const py::gil_scoped_release release;
    target.run(values, parsed);
  }

  py::dict results() {
    const Batch& source = batch();
    const Results& from = *source.results();
    const py::capsule self = owner_of(source.results());
    const py::ssize_t envs = source.settings().num_envs;
    const py::ssize_t height = source.settings().render.height;
    const py::ssize_t width = source.settings().render.width;
    py::dict out;
    out["observation"] = view(from.observation, {envs, source.task().observation_size()}, self);
    out["reward"] = view(from.reward, {envs}, self);
    out["discount"] = view(from.discount, {envs}, self);
    out["step_type"] = view(from.step_type, {envs}, self);
    out["qpos"] = view(from.qpos, {envs, static_cast<py::ssize_t>(source.model().nq)}, self);
    out["qvel"] = view(from.qvel, {envs, static_cast<py::ssize_t>(source.model().nv)}, self);
    if (height > 0) out["pixels"] = view(from.pixels, {envs, height, width, 3}, self);
    if (source.settings().render.segmentation) {
      out["segmentation"] = view(from.segmentation, {envs, height, width}, self);
      out["body_mask"] = view(from.body_mask, {envs, height, width}, self);
    }
    return out;
  }

  py::dict faults() {
    const Batch& source = batch();
    py::dict out;
    for (int env = 0; env < source.settings().num_envs; ++env) {
      if (!source.fault(env).empty()) out[py::int_(env)] = source.fault(env);
    }
    return out;
  }

  py::list fields() {
    py::list out;
    for (const ObservationField& field : batch().task().fields()) {
      out.append(py::make_tuple(field.name, py::tuple(py::cast(field.shape))));
    }
    return out;
  }

  py::array_t<double> get_state() {
    const Batch& source = batch();
    py::array_t<double> out({source.settings().num_envs, source.state_size()});
    source.get_state(out.mutable_data());
    return out;
  }

  void set_state(const Actions& states) {
    Batch& target = batch();
    if (states.ndim() != 2 || states.shape(0) != target.settings().num_envs || states.shape(1) != target.state_size()) {
      throw std::invalid_argument("states must have shape (" + std::to_string(target.settings().num_envs) + ", " +
                                  std::to_string(target.state_size()) + ")");
    }
    const double* values = states.data();
    const Use use(busy_);
    const py::gil_scoped_release release;
    target.set_state(values);
  }

  py::list model_changes(int env) {
    py::list out;
    for (const ModelChange& change : batch().model_changes(env)) {
      out.append(py::make_tuple(change.offset,
                                py::bytes(reinterpret_cast<const char*>(change.bytes.data()), change.bytes.size())));
    }
    return out;
  }

  void set_model_changes(int env, const std::vector<std::pair<std::size_t, std::string>>& changes) {
    std::vector<ModelChange> parsed;
    parsed.reserve(changes.size());
    for (const auto& [offset, bytes] : changes) parsed.push_back({offset, {bytes.begin(), bytes.end()}});
    batch().set_model_changes(env, std::move(parsed));
  }

  void set_report(int env, double reward, double discount, int step_type) {
    batch().set_report(env, reward, discount, static_cast<StepType>(step_type));
  }

 private:
  std::atomic<bool> busy_{false};
  std::unique_ptr<Batch> batch_;
};

}  // namespace
}  // namespace aime

PYBIND11_MODULE(_parallel_environment, module) {
  using aime::PyBatch;
  module.doc() = "Batched stepping and rendering of dm_control tasks. Use aime.envs.ParallelEnvironment.";
  module.attr("MUJOCO_HEADER_VERSION") = mjVERSION_HEADER;
  module.attr("STEP") = static_cast<int>(aime::Command::kStep);
  module.attr("FIRST") = static_cast<int>(aime::Command::kFirst);
  module.attr("OBSERVE") = static_cast<int>(aime::Command::kObserve);
  module.def("load_mujoco", &aime::load_mujoco, py::arg("path"));
  module.def("mujoco_version", [] { return aime::mujoco().mj_version(); });
  module.def("gl_displays", &aime::gl_displays);
  module.def("probe_gl", &aime::probe_gl, py::call_guard<py::gil_scoped_release>());
  module.def("supported_tasks", &aime::supported_tasks);
  aime::bind_random_state(module);
  py::class_<PyBatch>(module, "Batch")
      .def(py::init<std::uintptr_t, const std::string&, const std::string&, int, int, int, double, int, int, int, int,
                    const std::string&, bool>(),
           py::kw_only(), py::arg("model"), py::arg("domain"), py::arg("task"), py::arg("num_envs"),
           py::arg("num_threads"), py::arg("substeps"), py::arg("step_limit"), py::arg("action_repeat"),
           py::arg("height"), py::arg("width"), py::arg("camera"), py::arg("quality"), py::arg("segmentation"))
      .def("close", &PyBatch::close)
      .def("load", &PyBatch::load, py::arg("env"), py::arg("model"), py::arg("data"))
      .def("run", &PyBatch::run, py::arg("actions"), py::arg("commands"))
      .def("results", &PyBatch::results)
      .def("faults", &PyBatch::faults)
      .def("fields", &PyBatch::fields)
      .def("get_state", &PyBatch::get_state)
      .def("set_state", &PyBatch::set_state, py::arg("states"))
      .def("model_changes", &PyBatch::model_changes, py::arg("env"))
      .def("set_model_changes", &PyBatch::set_model_changes, py::arg("env"), py::arg("changes"))
      .def(
          "step_count", [](PyBatch& self, int env) { return self.batch().step_count(env); }, py::arg("env"))
      .def(
          "set_step_count", [](PyBatch& self, int env, std::int64_t count) { self.batch().set_step_count(env, count); },
          py::arg("env"), py::arg("count"))
      .def("set_report", &PyBatch::set_report, py::arg("env"), py::arg("reward"), py::arg("discount"),
           py::arg("step_type"))
      .def("renderer", [](PyBatch& self) { return self.batch().renderer_description(); });
}
