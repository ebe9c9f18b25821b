#include "task.hpp"

#include "tolerance.hpp"

#include <algorithm>
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

namespace {

struct Domain {
  std::string name;
  std::unique_ptr<Task> (*make)(const std::string&, const mjModel*);
  std::vector<std::string> tasks;
};

const std::vector<Domain>& all_domains() {
  static const std::vector<Domain> domains = {
      {"acrobot", make_acrobot, {"swingup", "swingup_sparse"}},
      {"ball_in_cup", make_ball_in_cup, {"catch"}},
      {"cartpole",
       make_cartpole,
       {"balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"}},
      {"cheetah", make_cheetah, {"run"}},
      {"dog", make_dog, {"stand", "walk", "trot", "run", "fetch"}},
      {"finger", make_finger, {"spin", "turn_easy", "turn_hard"}},
      {"fish", make_fish, {"upright", "swim"}},
      {"hopper", make_hopper, {"stand", "hop"}},
      {"humanoid", make_humanoid, {"stand", "walk", "run", "run_pure_state"}},
      {"humanoid_CMU", make_humanoid_cmu, {"stand", "walk", "run"}},
      {"lqr", make_lqr, {"lqr_2_1", "lqr_6_2"}},
      {"manipulator", make_manipulator, {"bring_ball", "bring_peg", "insert_ball", "insert_peg"}},
      {"pendulum", make_pendulum, {"swingup"}},
      {"point_mass", make_point_mass, {"easy", "hard"}},
      {"quadruped", make_quadruped, {"walk", "run", "escape", "fetch"}},
      {"reacher", make_reacher, {"easy", "hard"}},
      {"stacker", make_stacker, {"stack_2", "stack_4"}},
      {"swimmer", make_swimmer, {"swimmer6", "swimmer15"}},
      {"walker", make_walker, {"stand", "walk", "run"}},
  };
  return domains;
}

}  // namespace

const std::vector<std::pair<std::string, std::string>>& supported_tasks() {
  static const std::vector<std::pair<std::string, std::string>> pairs = [] {
    std::vector<std::pair<std::string, std::string>> found;
    for (const Domain& domain : all_domains()) {
      for (const std::string& task : domain.tasks) found.emplace_back(domain.name, task);
    }
    return found;
  }();
  return pairs;
}

std::unique_ptr<Task> make_task(const std::string& domain, const std::string& task, const mjModel* model) {
  for (const Domain& candidate : all_domains()) {
    const std::vector<std::string>& tasks = candidate.tasks;
    if (candidate.name != domain || std::find(tasks.begin(), tasks.end(), task) == tasks.end()) continue;
    return candidate.make(task, model);
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

double mean_small_control(const mjModel* model, const mjData* data) {
  const Tolerance small{0.0, 0.0, 1.0, Sigmoid::kQuadratic, 0.0};
  double sum = 0.0;
  for (int actuator = 0; actuator < model->nu; ++actuator) sum += small(data->ctrl[actuator]);
  return sum / static_cast<double>(model->nu);
}

}  // namespace aime
