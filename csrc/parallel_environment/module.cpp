// The Python face of the batch: thin, typed, and with the GIL released while environments run.
#include "batch.hpp"
#include "gl_context.hpp"
#include "module_callback.hpp"
#include "module_raycaster.hpp"
#include "random_module.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

namespace py = pybind11;

namespace aime {
namespace {

using Actions = py::array_t<double, py::array::c_style | py::array::forcecast>;

template <typename Struct>
Struct* pointer(std::uintptr_t address) {
  return reinterpret_cast<Struct*>(address);  // NOLINT: the address is the hand-over from MuJoCo's bindings
}

Quality parse_quality(const std::string& name) {
  if (name == "exact") return Quality::kExact;
  if (name == "high") return Quality::kHigh;
  if (name == "fast") return Quality::kFast;
  throw std::invalid_argument("quality must be 'exact', 'high' or 'fast', not '" + name + "'");
}

RendererKind parse_renderer(const std::string& name) {
  if (name == "gl") return RendererKind::kGl;
  if (name == "raycast") return RendererKind::kRaycast;
  throw std::invalid_argument("renderer must be 'gl' or 'raycast', not '" + name + "'");
}

Autoreset parse_autoreset(const std::string& name) {
  if (name == "disabled") return Autoreset::kDisabled;
  if (name == "next_step") return Autoreset::kNextStep;
  if (name == "same_step") return Autoreset::kSameStep;
  throw std::invalid_argument("autoreset must be 'disabled', 'next_step' or 'same_step', not '" + name + "'");
}

// Views of a block without a copy; they keep its memory alive.
class Views {
 public:
  Views(std::shared_ptr<const Results> results, const RowShape& shape, const RenderSettings& render)
      : results_(*results), shape_(shape), rows_(static_cast<py::ssize_t>(results->reward.size())) {
    auto* held = new std::shared_ptr<const Results>(std::move(results));  // NOLINT: the capsule deletes it
    owner_ = py::capsule(held, [](void* at) { delete static_cast<std::shared_ptr<const Results>*>(at); });
    picture_ = {rows_, render.height, render.width};
    stack_ = picture_;
    if (shape.frame_stack > 1) stack_.insert(stack_.begin() + 1, static_cast<py::ssize_t>(shape.frame_stack));
    stack_.push_back(3);
  }

  py::dict all() {
    add("reward", results_.reward, {rows_});
    add("discount", results_.discount, {rows_});
    add("step_type", results_.step_type, {rows_});
    add("env_id", results_.env_id, {rows_});
    add_rows("", results_.rows);
    if (!results_.has_final.empty()) {
      add("has_final", results_.has_final, {rows_});
      add_rows("final_", results_.final_rows);
    }
    return out_;
  }

 private:
  template <typename Number>
  void add(const std::string& name, const std::vector<Number>& values, const std::vector<py::ssize_t>& shape) {
    out_[py::str(name)] = py::array_t<Number>(shape, values.data(), owner_);
  }

  void add_state(const std::string& name, const std::vector<std::uint8_t>& bytes, std::size_t width) {
    const std::vector<py::ssize_t> shape = {rows_, static_cast<py::ssize_t>(width)};
    const py::dtype type = shape_.single ? py::dtype::of<float>() : py::dtype::of<double>();
    out_[py::str(name)] = py::array(type, shape, bytes.data(), owner_);
  }

  void add_rows(const std::string& prefix, const Rows& rows) {
    add_state(prefix + "observation", rows.observation, shape_.observation);
    add_state(prefix + "qpos", rows.qpos, shape_.qpos);
    add_state(prefix + "qvel", rows.qvel, shape_.qvel);
    if (shape_.area > 0) add(prefix + "pixels", rows.pixels, stack_);
    if (shape_.depth) add(prefix + "depth", rows.depth, picture_);
    if (!shape_.segmentation) return;
    add(prefix + "segmentation", rows.segmentation, picture_);
    add(prefix + "body_mask", rows.body_mask, picture_);
  }

  const Results& results_;
  RowShape shape_;
  py::ssize_t rows_;
  py::capsule owner_;
  std::vector<py::ssize_t> picture_, stack_;
  py::dict out_;
};

// The one Python thread that uses a batch: a second one is an error instead of a race. A thread may take it again
// within its own use.
class User {
 public:
  void take() {
    const std::thread::id self = std::this_thread::get_id();
    std::thread::id nobody;
    if (thread_.load() != self && !thread_.compare_exchange_strong(nobody, self)) {
      throw std::runtime_error("another thread is using this environment");
    }
    ++depth_;
  }
  void leave() {
    if (--depth_ == 0) thread_.store(std::thread::id());
  }

 private:
  std::atomic<std::thread::id> thread_{};
  int depth_ = 0;  // the thread's own
};

class Use {
 public:
  explicit Use(User& user) : user_(user) { user_.take(); }
  ~Use() { user_.leave(); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  User& user_;
};

// Model changes as Python has them: (offset, bytes).
using Runs = std::vector<std::pair<std::size_t, std::string>>;

py::list listed(const ModelChanges& changes) {
  py::list out;
  for (const ModelChange& change : changes) {
    out.append(py::make_tuple(change.offset,
                              py::bytes(reinterpret_cast<const char*>(change.bytes.data()), change.bytes.size())));
  }
  return out;
}

ModelChanges parsed(const Runs& runs) {
  ModelChanges changes;
  changes.reserve(runs.size());
  for (const auto& [offset, bytes] : runs) changes.push_back({offset, {bytes.begin(), bytes.end()}});
  return changes;
}

class PyBatch {
 public:
  PyBatch(std::uintptr_t model, const std::vector<std::uint32_t>& seeds, const std::string& domain,
          const std::string& task, int num_threads, int batch_size, int substeps, double step_limit, int action_repeat,
          const std::string& autoreset, int frame_stack, bool single_precision, int height, int width, int camera,
          const std::string& quality, bool segmentation, bool depth, const std::string& renderer, int samples,
          std::vector<double> minimum, std::vector<double> maximum, bool randomised, const py::object& callbacks)
      : minimum_(std::move(minimum)), maximum_(std::move(maximum)) {
    BatchSettings settings;
    settings.domain = domain;
    settings.task = task;
    settings.num_envs = static_cast<int>(seeds.size());
    settings.num_threads = num_threads;
    settings.batch_size = batch_size;
    settings.substeps = substeps;
    settings.step_limit = step_limit;
    settings.action_repeat = action_repeat;
    settings.autoreset = parse_autoreset(autoreset);
    settings.frame_stack = frame_stack;
    settings.single_precision = single_precision;
    settings.randomised = randomised;
    settings.render = {height,  width, camera, parse_quality(quality), segmentation, depth, parse_renderer(renderer),
                       samples, {}};
    TaskCallbacks parsed = parse_callbacks(callbacks);
    const int action_size = callbacks.is_none() ? pointer<const mjModel>(model)->nu : parsed.action_size;
    if (minimum_.size() != static_cast<std::size_t>(action_size) || maximum_.size() != minimum_.size()) {
      throw std::invalid_argument("an action has a bound for each of its entries");
    }
    batch_ = std::make_unique<Batch>(pointer<const mjModel>(model), settings, seeds, std::move(parsed));
  }

  // Threads that end may wait for the GIL in a callback. pybind11's GIL guards throw only without an interpreter, where
  // to end the process is right.
  ~PyBatch() {  // NOLINT(bugprone-exception-escape)
    const py::gil_scoped_release release;
    batch_.reset();
  }
  PyBatch(const PyBatch&) = delete;
  PyBatch& operator=(const PyBatch&) = delete;

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
    if (batch_ && batch_->forked()) {
      batch_.reset();  // a user among the parent's threads is not here to end its use
      return;
    }
    const Use use(user_);
    const py::gil_scoped_release release;
    batch_.reset();
  }

  // Keeps other threads out over several calls, and refuses what is closed.
  void enter() {
    batch();
    user_.take();
  }
  void exit() { user_.leave(); }

  void load(int env, std::uintptr_t model, std::uintptr_t data) {
    batch().load(env, pointer<const mjModel>(model), pointer<const mjData>(data));
  }

  void lend_model(int env, std::uintptr_t model) { batch().lend_model(env, pointer<mjModel>(model)); }

  void set_model(int env, std::uintptr_t model) { batch().set_model(env, pointer<const mjModel>(model)); }

  // The flat index of the first number that is not within its bounds (not finite, for one), or -1.
  py::ssize_t wrong_action(const Actions& actions) {
    const std::size_t width = minimum_.size();
    if (actions.ndim() != 2 || actions.shape(1) != static_cast<py::ssize_t>(width)) {
      throw std::invalid_argument("actions must have shape (environments, action_size)");
    }
    const double* value = actions.data();
    for (py::ssize_t row = 0; row < actions.shape(0); ++row) {
      for (std::size_t entry = 0; entry < width; ++entry, ++value) {
        if (!(*value >= minimum_[entry] && *value <= maximum_[entry])) return value - actions.data();
      }
    }
    return -1;
  }

  // All environments step; `meanwhile` (or None) is called while they do, and its exception is thrown after them.
  // (block, whether it has faults); the block is negative for a wrong action: -1 - its index.
  std::pair<py::ssize_t, bool> step(const Actions& actions, const py::object& meanwhile) {
    if (const py::ssize_t wrong = wrong_action(actions); wrong >= 0) return {-1 - wrong, false};
    Batch& target = batch();
    if (actions.shape(0) != target.settings().num_envs) {
      throw std::invalid_argument("actions must have shape (num_envs, action_size)");
    }
    const Use use(user_);
    target.start_steps(actions.data());
    try {
      if (!meanwhile.is_none()) meanwhile();
    } catch (...) {
      finish(target);
      throw;
    }
    return finish(target);
  }

  std::pair<py::ssize_t, bool> begin(const std::optional<std::vector<int>>& ids) {
    Batch& target = batch();
    const Use use(user_);
    target.start_episodes(ids ? &*ids : nullptr);
    return finish(target);
  }

  void send(const std::vector<int>& ids, const Actions& actions) {
    Batch& target = batch();
    if (actions.ndim() != 2 || actions.shape(0) != static_cast<py::ssize_t>(ids.size()) ||
        actions.shape(1) != static_cast<py::ssize_t>(minimum_.size())) {
      throw std::invalid_argument("actions must have shape (len(ids), action_size)");
    }
    const Use use(user_);
    target.send(ids, actions.data());
  }

  std::pair<py::ssize_t, bool> receive() {
    Batch& target = batch();
    const Use use(user_);
    int block = 0;
    {
      const py::gil_scoped_release release;
      block = target.receive();
    }
    return {block, target.received_blocks()[static_cast<std::size_t>(block)]->troubled.load()};
  }

  void drop_in_flight() {
    Batch& target = batch();
    const Use use(user_);
    const py::gil_scoped_release release;
    target.drop_in_flight();
  }

  py::dict views(std::size_t block, bool received) {
    const Batch& source = batch();
    return Views(block_of(block, received), source.shape(), source.settings().render).all();
  }

  py::dict faults(std::size_t block, bool received) {
    py::dict out;
    for (const auto& [env, reason] : block_of(block, received)->faults) out[py::int_(env)] = reason;
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
    Batch& source = batch();
    const Use use(user_);
    py::array_t<double> out({source.settings().num_envs, source.state_size()});
    source.get_state(out.mutable_data());
    return out;
  }

  // The last time step of each environment: reward, discount, step type, control steps, pictures.
  py::dict reports() {
    const Batch& source = batch();
    const auto envs = static_cast<py::ssize_t>(source.settings().num_envs);
    const RowShape& shape = source.shape();
    py::array_t<double> reward(envs), discount(envs);
    py::array_t<std::int8_t> step_type(envs);
    py::array_t<std::int64_t> step_count(envs);
    const auto stack = static_cast<py::ssize_t>(shape.frame() * shape.frame_stack);
    py::array_t<std::uint8_t> frames({envs, stack});
    for (int env = 0; env < envs; ++env) {
      const Report& report = source.report(env);
      reward.mutable_at(env) = report.reward;
      discount.mutable_at(env) = report.discount;
      step_type.mutable_at(env) = report.type;
      step_count.mutable_at(env) = source.step_count(env);
      std::copy(report.frames.begin(), report.frames.end(), frames.mutable_data() + env * stack);
    }
    py::dict out;
    out["reward"] = reward;
    out["discount"] = discount;
    out["step_type"] = step_type;
    out["step_count"] = step_count;
    out["frames"] = frames;
    return out;
  }

  void check_state(const Actions& physics, const std::vector<Runs>& changes) {
    Batch& target = batch();
    require_physics(physics);
    std::vector<ModelChanges> all;
    all.reserve(changes.size());
    for (const Runs& runs : changes) all.push_back(parsed(runs));
    const Use use(user_);
    const py::gil_scoped_release release;
    target.check_state(physics.data(), all);
  }

  std::pair<py::ssize_t, bool> set_state(const Actions& physics,
                                         const std::optional<py::array_t<std::uint8_t, py::array::c_style>>& frames,
                                         std::vector<double> reward, std::vector<double> discount,
                                         std::vector<std::int8_t> step_type, std::vector<std::int64_t> step_count) {
    Batch& target = batch();
    const auto envs = static_cast<std::size_t>(target.settings().num_envs);
    require_physics(physics);
    const std::size_t stack = target.shape().frame() * target.shape().frame_stack;
    if (frames && static_cast<std::size_t>(frames->size()) != envs * stack) {
      throw std::invalid_argument("frames must have " + std::to_string(stack) + " numbers for each environment");
    }
    if (reward.size() != envs || discount.size() != envs || step_type.size() != envs || step_count.size() != envs) {
      throw std::invalid_argument("reward, discount, step_type and step_count have one number for each environment");
    }
    RestoredState state;
    state.physics = physics.data();
    state.frames = frames ? frames->data() : nullptr;
    state.reward = std::move(reward);
    state.discount = std::move(discount);
    state.step_type = std::move(step_type);
    state.step_count = std::move(step_count);
    const Use use(user_);
    {
      const py::gil_scoped_release release;
      target.set_state(state);
    }
    return {target.block(), false};
  }

  py::list model_changes(int env) {
    const SharedChanges& changes = batch().model_changes(env);
    return changes ? listed(*changes) : py::list();
  }

  void set_model_changes(int env, const Runs& runs) { batch().set_model_changes(env, parsed(runs)); }

  void set_fields(int env, const Runs& runs) { batch().set_fields(env, parsed(runs)); }

  py::list compare_model(std::uintptr_t model) { return listed(batch().compare(pointer<const mjModel>(model))); }

  void restore_model(std::uintptr_t model) { batch().restore(pointer<mjModel>(model)); }

  py::tuple random_state(int env) { return numpy_state(batch().stream(env)); }

  void forget_next(int env, const std::optional<py::tuple>& stream) {
    if (!stream) {
      batch().forget_next(env, nullptr);
      return;
    }
    const RandomStream parsed = parse_numpy_state(*stream);
    batch().forget_next(env, &parsed);
  }

 private:
  std::shared_ptr<const Results> block_of(std::size_t block, bool received) {
    const Batch& source = batch();
    return received ? source.received_blocks().at(block) : source.blocks().at(block);
  }

  void require_physics(const Actions& physics) {
    const Batch& target = batch();
    const int envs = target.settings().num_envs;
    if (physics.ndim() == 2 && physics.shape(0) == envs && physics.shape(1) == target.state_size()) return;
    throw std::invalid_argument("physics must have shape (" + std::to_string(envs) + ", " +
                                std::to_string(target.state_size()) + ")");
  }

  static std::pair<py::ssize_t, bool> finish(Batch& target) {
    {
      const py::gil_scoped_release release;
      target.finish();
    }
    const auto block = static_cast<std::size_t>(target.block());
    return {static_cast<py::ssize_t>(block), target.blocks()[block]->troubled.load()};
  }

  User user_;
  std::vector<double> minimum_, maximum_;
  std::unique_ptr<Batch> batch_;
};

}  // namespace
}  // namespace aime

PYBIND11_MODULE(_parallel_environment, module) {
  using aime::PyBatch;
  module.doc() = "Batched stepping and rendering of dm_control tasks. Use aime.envs.ParallelEnvironment.";
  module.attr("MUJOCO_HEADER_VERSION") = mjVERSION_HEADER;
  module.def("load_mujoco", &aime::load_mujoco, py::arg("path"));
  module.def("mujoco_version", [] { return aime::mujoco().mj_version(); });
  module.def("gl_displays", &aime::gl_displays);
  module.def("probe_gl", &aime::probe_gl, py::call_guard<py::gil_scoped_release>());
  module.def("supported_tasks", &aime::supported_tasks);
  aime::bind_random_state(module);
  aime::bind_raycaster(module);
  py::class_<PyBatch>(module, "Batch")
      .def(py::init<std::uintptr_t, const std::vector<std::uint32_t>&, const std::string&, const std::string&, int, int,
                    int, double, int, const std::string&, int, bool, int, int, int, const std::string&, bool, bool,
                    const std::string&, int, std::vector<double>, std::vector<double>, bool, const py::object&>(),
           py::kw_only(), py::arg("model"), py::arg("seeds"), py::arg("domain"), py::arg("task"),
           py::arg("num_threads"), py::arg("batch_size"), py::arg("substeps"), py::arg("step_limit"),
           py::arg("action_repeat"), py::arg("autoreset"), py::arg("frame_stack"), py::arg("single_precision"),
           py::arg("height"), py::arg("width"), py::arg("camera"), py::arg("quality"), py::arg("segmentation"),
           py::arg("depth"), py::arg("renderer"), py::arg("samples"), py::arg("minimum"), py::arg("maximum"),
           py::arg("randomised"), py::arg("callbacks") = py::none())
      .def("close", &PyBatch::close)
      .def("__enter__",
           [](py::object self) {
             self.cast<PyBatch&>().enter();
             return self;
           })
      .def("__exit__", [](PyBatch& self, const py::args&) { self.exit(); })
      .def("initialises", [](PyBatch& self) { return self.batch().task().initialises(); })
      .def("load", &PyBatch::load, py::arg("env"), py::arg("model"), py::arg("data"))
      .def("lend_model", &PyBatch::lend_model, py::arg("env"), py::arg("model"))
      .def("set_model", &PyBatch::set_model, py::arg("env"), py::arg("model"))
      .def(
          "lacking",
          [](PyBatch& self, const std::optional<std::vector<int>>& ids, bool begin) {
            return self.batch().lacking(ids ? &*ids : nullptr, begin);
          },
          py::arg("ids"), py::arg("begin"))
      .def("unprepared", [](PyBatch& self) { return self.batch().unprepared(); })
      .def("random_state", &PyBatch::random_state, py::arg("env"))
      .def("forget_next", &PyBatch::forget_next, py::arg("env"), py::arg("random_state") = py::none())
      .def("wrong_action", &PyBatch::wrong_action, py::arg("actions"))
      .def("step", &PyBatch::step, py::arg("actions"), py::arg("meanwhile") = py::none())
      .def("begin", &PyBatch::begin, py::arg("ids"))
      .def("send", &PyBatch::send, py::arg("ids"), py::arg("actions"))
      .def("receive", &PyBatch::receive)
      .def("in_flight", [](PyBatch& self) { return self.batch().in_flight(); })
      .def("drop_in_flight", &PyBatch::drop_in_flight)
      .def("views", &PyBatch::views, py::arg("block"), py::arg("received"))
      .def("faults", &PyBatch::faults, py::arg("block"), py::arg("received"))
      .def("fields", &PyBatch::fields)
      .def("get_state", &PyBatch::get_state)
      .def("reports", &PyBatch::reports)
      .def("check_state", &PyBatch::check_state, py::kw_only(), py::arg("physics"), py::arg("changes"))
      .def("set_state", &PyBatch::set_state, py::kw_only(), py::arg("physics"), py::arg("frames"), py::arg("reward"),
           py::arg("discount"), py::arg("step_type"), py::arg("step_count"))
      .def("model_changes", &PyBatch::model_changes, py::arg("env"))
      .def("set_model_changes", &PyBatch::set_model_changes, py::arg("env"), py::arg("changes"))
      .def("set_fields", &PyBatch::set_fields, py::arg("env"), py::arg("changes"))
      .def("compare_model", &PyBatch::compare_model, py::arg("model"))
      .def("restore_model", &PyBatch::restore_model, py::arg("model"))
      .def("renderer", [](PyBatch& self) { return self.batch().renderer_description(); });
}
