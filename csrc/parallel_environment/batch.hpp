// N environments of one task, stepped together by a pool of threads.
#pragma once

#include "model_change.hpp"
#include "renderer.hpp"
#include "task.hpp"
#include "worker_pool.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace aime {

enum StepType : std::int8_t { kFirst = 0, kMid = 1, kLast = 2 };  // dm_env's

// What each environment is to do in one call of Batch::run.
enum class Command : std::uint8_t {
  kStep,     // apply the action for action_repeat control steps
  kFirst,    // report the first time step of the episode just loaded
  kObserve,  // report the current state again; reward, discount and step type stay
};

struct BatchSettings {
  std::string domain;
  std::string task;
  int num_envs = 1;
  int num_threads = 1;
  int substeps = 1;         // physics steps in one control step
  double step_limit = 0.0;  // control steps in one episode, as dm_control computes it (may be a fraction)
  int action_repeat = 1;
  RenderSettings render;
};

// One step's results, row per environment. Two sets alternate, so a result is valid until the second next step.
struct Results {
  std::vector<double> observation, reward, discount, qpos, qvel;
  std::vector<std::int8_t> step_type;
  std::vector<std::uint8_t> pixels, body_mask;
  std::vector<std::int32_t> segmentation;
};

class Batch {
 public:
  // `model` is the pristine compiled model; it is copied.
  Batch(const mjModel* model, const BatchSettings& settings);
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Takes over an episode that dm_control initialised: the state and every changed field of the model.
  void load(int env, const mjModel* model, const mjData* data);

  // Carries out one command per environment. Actions: (num_envs, action_size), read for kStep only. A physics fault
  // ends that environment's episode (see fault) and nothing else.
  void run(const double* actions, const std::vector<Command>& commands);

  // Why the last step of `env` ended in a fault; empty when it did not.
  const std::string& fault(int env) const { return environments_[index(env)].fault; }

  // The results of the last run; shared, so that views of them outlive the batch.
  std::shared_ptr<const Results> results() const { return results_[static_cast<std::size_t>(current_)]; }

  // Everything of the environments' physics: (num_envs, state_size) in mjSTATE_INTEGRATION order.
  int state_size() const;
  void get_state(double* out) const;
  // Restores states and recomputes what follows from them; reports come with the next run.
  void set_state(const double* states);
  const std::vector<ModelChange>& model_changes(int env) const { return environments_[index(env)].changes; }
  void set_model_changes(int env, std::vector<ModelChange> changes);
  std::int64_t step_count(int env) const { return environments_[index(env)].step_count; }
  void set_step_count(int env, std::int64_t count) { environments_[index(env)].step_count = count; }
  // Puts the scalars of a time step where kObserve keeps them.
  void set_report(int env, double reward, double discount, StepType type);

  const BatchSettings& settings() const { return settings_; }
  const Task& task() const { return *task_; }
  const mjModel& model() const { return *base_; }
  std::string renderer_description() const;
  bool forked() const;

 private:
  struct Environment {
    mjData* data = nullptr;
    std::vector<ModelChange> changes;
    std::int64_t step_count = 0;
    std::string fault;
  };
  struct Worker {
    mjModel* model = nullptr;              // with the render settings, and one environment's changes
    const Environment* applied = nullptr;  // the environment whose changes it carries
    std::unique_ptr<Renderer> renderer;    // made on the worker's own thread, at its first picture
  };

  std::size_t index(int env) const;
  Results& now() { return *results_[static_cast<std::size_t>(current_)]; }
  const Results& before() const { return *results_[static_cast<std::size_t>(1 - current_)]; }
  void bind(Worker& worker, const Environment& environment);
  void unbind(Worker& worker);
  void carry_out(int worker, int env, Command command, const double* action);
  void step(const mjModel* model, Environment& environment, int env, const double* action);
  bool control_step(const mjModel* model, Environment& environment);
  void repeat_previous(int env);
  void report_state(Worker& worker, int worker_index, Environment& environment, int env);
  void allocate();
  void finish(int worker);

  BatchSettings settings_;
  mjModel* base_ = nullptr;
  std::unique_ptr<Task> task_;
  std::vector<Environment> environments_;
  std::vector<Worker> workers_;
  std::array<std::shared_ptr<Results>, 2> results_;
  int current_ = 0;
  int process_ = 0;
  std::unique_ptr<WorkerPool> pool_;
};

}  // namespace aime
