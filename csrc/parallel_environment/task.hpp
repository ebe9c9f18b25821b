// A task of the suite: what it observes and what it rewards. Each domain's file mirrors the dm_control class it
// follows. Episodes are initialised by dm_control itself, so a task here holds no random numbers and no state.
#pragma once

#include "mujoco_api.hpp"

#include <memory>
#include <string>
#include <vector>

namespace aime {

struct ObservationField {
  std::string name;
  int size;     // numbers in the flat observation
  bool scalar;  // dm_control gives a scalar: shape () instead of (1,)
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

 protected:
  std::vector<ObservationField> fields_;
};

// One maker for each domain; a null pointer when the domain has no such task.
std::unique_ptr<Task> make_cartpole(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_reacher(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_walker(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_cheetah(const std::string& task, const mjModel* model);
std::unique_ptr<Task> make_humanoid(const std::string& task, const mjModel* model);

// Throws std::invalid_argument for a pair that is not in supported_tasks().
std::unique_ptr<Task> make_task(const std::string& domain, const std::string& task, const mjModel* model);

// (domain, task) pairs with an implementation here.
const std::vector<std::pair<std::string, std::string>>& supported_tasks();

// The index of a named object. Throws std::runtime_error naming it when the model lacks it.
int object_id(const mjModel* model, mjtObj type, const char* name);
// Where a sensor's numbers start in mjData.sensordata.
int sensor_address(const mjModel* model, const char* name);

// Row-major index into a 3 x 3 rotation, by dm_control's names.
enum MatrixEntry { kXX = 0, kXZ = 2, kZX = 6, kZZ = 8 };

}  // namespace aime
