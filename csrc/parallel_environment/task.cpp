#include "task.hpp"

#include <stdexcept>
#include <utility>

namespace aime {

int ObservationField::size() const {
  int product = 1;
  for (const int length : shape) product *= length;
  return product;
}

int Task::observation_size() const {
  int size = 0;
  for (const ObservationField& field : fields_) size += field.size();
  return size;
}

std::optional<double> Task::termination(const mjModel* /*model*/, const mjData* /*data*/) const { return std::nullopt; }

void Task::initialise(mjModel* /*model*/, mjData* /*data*/, RandomState& /*random*/) const {
  throw std::logic_error("dm_control initialises the episodes of this task");
}

const std::vector<std::pair<std::string, std::string>>& supported_tasks() {
  static const std::vector<std::pair<std::string, std::string>> tasks = {
      {"cartpole", "balance"},
      {"cartpole", "balance_sparse"},
      {"cartpole", "swingup"},
      {"cartpole", "swingup_sparse"},
      {"cartpole", "two_poles"},
      {"cartpole", "three_poles"},
      {"cheetah", "run"},
      {"humanoid", "stand"},
      {"humanoid", "walk"},
      {"humanoid", "run"},
      {"humanoid", "run_pure_state"},
      {"reacher", "easy"},
      {"reacher", "hard"},
      {"walker", "stand"},
      {"walker", "walk"},
      {"walker", "run"},
  };
  return tasks;
}

std::unique_ptr<Task> make_task(const std::string& domain, const std::string& task, const mjModel* model) {
  using Maker = std::unique_ptr<Task> (*)(const std::string&, const mjModel*);
  static const std::pair<const char*, Maker> makers[] = {
      {"cartpole", make_cartpole}, {"cheetah", make_cheetah}, {"humanoid", make_humanoid},
      {"reacher", make_reacher},   {"walker", make_walker},
  };
  for (const auto& [name, make] : makers) {
    if (domain != name) continue;
    if (std::unique_ptr<Task> made = make(task, model)) return made;
  }
  throw std::invalid_argument("no C++ task '" + domain + " " + task + "'");
}

int object_id(const mjModel* model, mjtObj type, const char* name) {
  const int id = mujoco().mj_name2id(model, type, name);
  if (id < 0) throw std::runtime_error(std::string("the model has no object named '") + name + "'");
  return id;
}

int sensor_address(const mjModel* model, const char* name) {
  return model->sensor_adr[object_id(model, mjOBJ_SENSOR, name)];
}

}  // namespace aime
