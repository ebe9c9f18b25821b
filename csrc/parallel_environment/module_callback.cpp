#include "module_callback.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace py = pybind11;

namespace aime {
namespace {

// The exception's own text, or its type where it has none.
std::string text_of(const py::error_already_set& error) {
  const py::object text = py::reinterpret_steal<py::object>(PyObject_Str(error.value().ptr()));
  if (text && py::len(text) > 0) return text.cast<std::string>();
  PyErr_Clear();
  return py::str(error.type().attr("__name__")).cast<std::string>();
}

// Called on the pool's threads, without the GIL, which every call into Python takes.
class PythonCallback final : public TaskCallback {
 public:
  explicit PythonCallback(const py::object& callback)
      : callback_(callback),
        observation_(py::array_t<double, py::array::c_style>::ensure(callback.attr("observation"))),
        action_(py::array_t<double, py::array::c_style>::ensure(callback.attr("action"))),
        observation_data_(observation_.data()),
        action_data_(action_.mutable_data()),
        action_size_(static_cast<std::size_t>(action_.size())),
        sets_control_only_(callback.attr("sets_control_only").cast<bool>()) {
    find_physics();
  }
  // pybind11's GIL guard throws only without an interpreter, where to end the process is right.
  ~PythonCallback() override {  // NOLINT(bugprone-exception-escape)
    const py::gil_scoped_acquire acquire;
    callback_.release().dec_ref();
    observation_.release().dec_ref();
    action_.release().dec_ref();
    kept_.release().dec_ref();
  }
  PythonCallback(const PythonCallback&) = delete;
  PythonCallback& operator=(const PythonCallback&) = delete;

  Physics physics() const override { return physics_; }

  void begin() override {
    call([&] { callback_.attr("begin")(); });
  }

  void before_step(const double* action) override {
    if (sets_control_only_) {
      std::copy_n(action, action_size_, physics_.data->ctrl);
      return;
    }
    call([&] {
      std::copy_n(action, action_size_, action_data_);
      callback_.attr("before_step")();
    });
  }

  Outcome after_step(bool time_limit) override {
    Outcome outcome;
    call([&] {
      const auto found = callback_.attr("after_step")(time_limit).cast<std::pair<double, py::object>>();
      outcome.reward = found.first;
      if (!found.second.is_none()) outcome.end = found.second.cast<double>();
    });
    return outcome;
  }

  const double* observation() const override { return observation_data_; }

 private:
  void find_physics() {
    py::tuple found = callback_.attr("physics")();
    const auto model = found[0].cast<std::uintptr_t>();
    const auto data = found[1].cast<std::uintptr_t>();
    physics_ = {reinterpret_cast<mjModel*>(model), reinterpret_cast<mjData*>(data)};  // NOLINT: MuJoCo's bindings
    kept_ = std::move(found);
  }

  // A Python exception must not outlive the GIL: it becomes a std::runtime_error with its text. (The exception itself
  // stays with the callback object, in Python.)
  template <typename Operation>
  void call(const Operation& operation) {
    const py::gil_scoped_acquire acquire;
    std::optional<std::string> failure;  // the text may be empty: KeyboardInterrupt's is
    const auto caught = [&](const auto& run) {
      try {
        run();
      } catch (const py::error_already_set& error) {
        if (!failure) failure = text_of(error);
      }
    };
    caught(operation);
    caught([&] { find_physics(); });
    if (failure) throw std::runtime_error(*failure);
  }

  py::object callback_;
  py::array_t<double, py::array::c_style> observation_, action_;
  const double* observation_data_;
  double* action_data_;
  std::size_t action_size_;
  bool sets_control_only_;
  Physics physics_;
  py::object kept_;  // the owners of what physics_ points to: a task may drop them, or load others, at any time
};

}  // namespace

TaskCallbacks parse_callbacks(const py::object& callbacks) {
  TaskCallbacks parsed;
  if (callbacks.is_none()) return parsed;
  for (const py::handle callback : callbacks) {
    const auto object = py::reinterpret_borrow<py::object>(callback);
    if (parsed.environments.empty()) {
      for (const auto& [name, shape] :
           object.attr("fields").cast<std::vector<std::pair<std::string, std::vector<int>>>>()) {
        parsed.fields.push_back({name, shape});
      }
      parsed.action_size = static_cast<int>(py::len(object.attr("action")));
      parsed.legacy_step = object.attr("legacy_step").cast<bool>();
    }
    parsed.environments.push_back(std::make_unique<PythonCallback>(object));
  }
  return parsed;
}

}  // namespace aime
