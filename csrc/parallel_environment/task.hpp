// A task of the suite: what it observes, what it rewards, when it ends and, for some, how an episode begins. Each
// domain's file mirrors the dm_control class it follows. A task holds no state: one serves all environments and
// threads.
#pragma once

#include "model_change.hpp"
#include "mujoco_api.hpp"
#include "random_state.hpp"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace aime {

struct ObservationField {
  std::string name;
  std::vector<int> shape;  // as in dm_control; empty for a scalar
  int size() const;        // numbers in the flat observation
};

class Task {
 public:
  virtual ~Task() = default;
  // In the order of dm_control's OrderedDict.
  const std::vector<ObservationField>& fields() const { return fields_; }
  int observation_size() const;
  // Writes observation_size() numbers.
  virtual void observe(const mjModel* model, const mjData* data, double* out) const = 0;
  virtual double reward(const mjModel* model, const mjData* data) const = 0;
  // The discount of an episode that ends in this state before its time limit; nothing where it goes on.
  virtual std::optional<double> termination(const mjModel* model, const mjData* data) const;

  // Whether `initialise` draws this task's episodes; dm_control's Python does for the others.
  virtual bool initialises() const { return false; }
  // Task.initialize_episode: call it through begin_episode (episode.hpp). `random` is the environment's own stream.
  // Throws std::runtime_error where dm_control raises, std::logic_error when the task does not initialise.
  virtual void initialise(mjModel* model, mjData* data, RandomState& random) const;
  // All that `initialise` may write in the model.
  const std::vector<ModelRange>& model_ranges() const { return model_ranges_; }

 protected:
  std::vector<ObservationField> fields_;
  std::vector<ModelRange> model_ranges_;
};

// One maker for each domain, called with the names of its tasks only.
std::unique_ptr<Task> make_acrobot(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_ball_in_cup(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_cartpole(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_cheetah(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_dog(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_finger(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_fish(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_hopper(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_humanoid(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_humanoid_cmu(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_lqr(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_manipulator(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_pendulum(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_point_mass(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_quadruped(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_reacher(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_stacker(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_swimmer(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_walker(const std::string& task, const mjModel* model);

// Throws std::invalid_argument for a pair that is not in supported_tasks().
std::unique_ptr<Task> make_task(const std::string& domain, const std::string& task, const mjModel* model);

// (domain, task) pairs with an implementation here.
const std::vector<std::pair<std::string, std::string>>& supported_tasks();

// The index of a named object. Throws std::runtime_error naming it when the model lacks it.
int object_id(const mjModel* model, mjtObj type, const char* name);
// Where a sensor's numbers start in mjData.sensordata.
int sensor_address(const mjModel* model, const char* name);

// The mean over the actuators of how little each is used: 1 for no control, 0 at its bound of 1.
double mean_small_control(const mjModel* model, const mjData* data);

// Row-major index into a 3 x 3 rotation, by dm_control's names.
enum MatrixEntry { kXX = 0, kXZ = 2, kZX = 6, kZY = 7, kZZ = 8 };

constexpr double kPi = 3.14159265358979323846;

}  // namespace aime
