// Tasks outside this library: another language owns the model, the state and the rules of each environment; the threads
// here take its physics steps.
#pragma once

#include "task.hpp"

#include <memory>
#include <optional>
#include <vector>

namespace aime {

// What surrounds the physics of one environment. Every call may throw std::runtime_error, and may replace the physics:
// ask for it again afterwards.
class TaskCallback {
 public:
  struct Physics {
    mjModel* model = nullptr;
    mjData* data = nullptr;
  };
  struct Outcome {
    double reward = 0.0;
    std::optional<double> end;  // the discount of an episode that ends here
  };

  virtual ~TaskCallback() = default;
  virtual Physics physics() const = 0;
  // Begins an episode and observes it.
  virtual void begin() = 0;
  virtual void before_step(const double* action) = 0;
  // After a control step: reward, observation and, where the time limit is not reached, the end.
  virtual Outcome after_step(bool time_limit) = 0;
  // The last observation, Task::observation_size() numbers.
  virtual const double* observation() const = 0;
};

// One for each environment of a batch, and what they all observe. Empty for the tasks of this library.
struct TaskCallbacks {
  std::vector<ObservationField> fields;
  std::vector<std::unique_ptr<TaskCallback>> environments;
  int action_size = 0;
  bool legacy_step = true;  // dm_control's: positions and velocities are up to date after a step
};

// Only the names and shapes: everything else is asked of an environment's TaskCallback.
class CallbackTask final : public Task {
 public:
  explicit CallbackTask(std::vector<ObservationField> fields) { fields_ = std::move(fields); }
  [[noreturn]] void observe(const mjModel* model, const mjData* data, double* out) const override;
  [[noreturn]] double reward(const mjModel* model, const mjData* data) const override;
};

}  // namespace aime
