// N environments of one task, stepped by a pool of threads: all together, or some at a time as they finish.
#pragma once

#include "callback_task.hpp"
#include "environment.hpp"
#include "renderer.hpp"
#include "results.hpp"
#include "task.hpp"
#include "worker_pool.hpp"

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace aime {

enum class Autoreset : std::uint8_t {
  kDisabled,
  kNextStep,  // the step after a last one begins the new episode
  kSameStep,  // the last step reports the first observation of the new episode, and the final one beside it
};

struct BatchSettings {
  std::string domain;
  std::string task;
  bool randomised = false;  // the caller sets fields before every episode
  int num_envs = 1;
  int num_threads = 1;
  int batch_size = 0;       // rows of `receive`; 0: environments step together only
  int substeps = 1;         // physics steps in one control step
  double step_limit = 0.0;  // control steps in one episode, as dm_control computes it (may be a fraction)
  int action_repeat = 1;
  Autoreset autoreset = Autoreset::kNextStep;
  int frame_stack = 1;
  bool single_precision = false;  // of observation, qpos and qvel; physics is double
  RenderSettings render;
};

// Where environments go on from, for Batch::set_state; rows per environment.
struct RestoredState {
  const double* physics = nullptr;       // (num_envs, state_size), as get_state
  const std::uint8_t* frames = nullptr;  // (num_envs, frame_stack, height, width, 3), or null: the newest is repeated
  std::vector<double> reward, discount;
  std::vector<std::int8_t> step_type;
  std::vector<std::int64_t> step_count;
};

class Batch {
 public:
  // `model` is the pristine compiled model; it is copied. `seeds`: one for each environment. With `callbacks`, one for
  // each environment too, the task is theirs: they begin its episodes, none ahead.
  Batch(const mjModel* model, const BatchSettings& settings, const std::vector<std::uint32_t>& seeds,
        TaskCallbacks callbacks = {});
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Episodes. Where the task `initialises()`, they begin in C++; else dm_control begins them and `load` takes them.
  // Takes over the next episode of `env`: the state and every changed field of the model.
  void load(int env, const mjModel* model, const mjData* data);
  // Puts what the present episode of `env` changed into `model`, dm_control's, which may carry another one's changes:
  // what the task drew, and the fields that the caller set for the next episode.
  void lend_model(int env, mjModel* model) const;
  // Environments among `ids` (null: all) that need an episode loaded (or, in C++, fields set) before they can do what
  // is asked next: `begin`, or a step with this autoreset.
  std::vector<int> lacking(const std::vector<int>* ids, bool begin) const;
  // An environment without a next episode, to load one while others step; -1 when there is none.
  int unprepared();
  // Forgets the next episode, which then is drawn again from `stream`, or from where the random stream stood.
  void forget_next(int env, const RandomStream* stream);
  // What the model of `env` differs in from its next episode on, whatever the task draws; drops an episode begun ahead.
  void set_fields(int env, ModelChanges changes);
  // Of a model with this layout: what differs from the task's own, and taking it back.
  ModelChanges compare(const mjModel* changed) const { return compare_models(base_.get(), changed); }
  void restore(mjModel* model) const;
  // The random stream that the next episode is (or was) drawn from.
  RandomStream stream(int env);

  // All environments together. `start` returns at once, `finish` when all are done; row i is environment i. Actions:
  // (num_envs, action_size). A physics fault ends that environment's episode and nothing else; an exception of a
  // worker is thrown by `finish` with environment and task. Throws std::runtime_error while results are outstanding,
  // and for a step of an ended episode with autoreset disabled.
  void start_steps(const double* actions);
  // The chosen environments (null: all) begin episodes; the others report their last step again.
  void start_episodes(const std::vector<int>* ids);
  void finish();
  // The index of the block with the last results of `finish` or `set_state`, and the blocks of all.
  int block() const { return current_; }
  const std::vector<std::shared_ptr<Results>>& blocks() const { return blocks_; }

  // Some environments (batch_size > 0): actions (count, action_size), row i for environment ids[i].
  // Throws std::invalid_argument for one that is in flight.
  void send(const std::vector<int>& ids, const double* actions);
  // Returns the block of the first batch_size environments to finish, as `received_blocks` holds it.
  int receive();
  const std::vector<std::shared_ptr<Results>>& received_blocks() const { return received_blocks_; }
  int in_flight() const { return static_cast<int>(sent_ - received_ * batch_size()); }
  // Waits for what is in flight and drops it.
  void drop_in_flight();

  const Report& report(int env) const { return environments_[index(env)].report; }

  // Numbers in mjSTATE_INTEGRATION order, then the sensors.
  int state_size() const;
  void get_state(double* out);
  // Throws std::invalid_argument where these states, `physics` as get_state gives it and the changes of each
  // environment's model, cannot be restored: changes beyond this model or of its structure, and numbers that MuJoCo
  // would replace by its default state. Nothing changes.
  void check_state(const double* physics, const std::vector<ModelChanges>& changes);
  // Restores states, recomputes what follows from them and reports them as the results of a step.
  void set_state(const RestoredState& state);
  const SharedChanges& model_changes(int env) const { return environments_[index(env)].current.changes; }
  void set_model_changes(int env, ModelChanges changes);
  // The environment's own model from now on; a task draws it from the seed.
  void set_model(int env, const mjModel* model) { set_model_changes(env, compare_models(base_.get(), model)); }
  std::int64_t step_count(int env) const { return environments_[index(env)].step_count; }

  const BatchSettings& settings() const { return settings_; }
  const RowShape& shape() const { return shape_; }
  const Task& task() const { return *task_; }
  const mjModel& model() const { return *base_; }
  std::string renderer_description() const;
  bool forked() const;

 private:
  struct Worker {
    BoundModel model;                    // with the render settings, and one environment's changes
    std::unique_ptr<Renderer> renderer;  // made on the worker's own thread, at its first picture
  };
  struct ModelDeleter {
    void operator()(mjModel* model) const { mujoco().mj_deleteModel(model); }
  };

  std::size_t index(int env) const;
  std::size_t batch_size() const { return static_cast<std::size_t>(settings_.batch_size); }
  void require_settled() const;
  void require_unfinished(const std::vector<int>* ids) const;
  void carry_out(int worker, int env);
  void publish(int worker, int env, const std::string& failure);
  void begin(int worker, Environment& environment);
  bool prepare(int worker);
  void draw_next(int worker, Environment& environment);
  SharedChanges before_next(const Environment& environment) const;
  void check_changes(const ModelChanges& changes) const;
  void step(int worker, Environment& environment);
  bool control_step(const mjModel* model, Environment& environment);
  void adopt_physics(Environment& environment) const;
  void abandon(Environment& environment) const;
  template <typename Call>
  void ask(Environment& environment, const Call& call) const;
  void begin_with_callback(Environment& environment);
  void step_with_callback(int worker, Environment& environment);
  void read_changes(Environment& environment) const;
  void restore(int worker, Environment& environment, int env);
  void observe(int worker, Environment& environment, bool first);
  void start(bool together);

  BatchSettings settings_;
  std::unique_ptr<mjModel, ModelDeleter> base_;
  std::unique_ptr<Task> task_;
  bool callbacks_ = false;
  bool legacy_step_ = true;
  RenderAssets assets_;  // shared by the workers' renderers
  RowShape shape_;
  std::deque<Environment> environments_;  // never moved
  std::vector<Worker> workers_;
  std::vector<std::shared_ptr<Results>> blocks_;           // two that alternate
  std::vector<std::shared_ptr<Results>> received_blocks_;  // a ring
  int current_ = 0;
  bool together_ = true;                 // what the environments in flight do: rows of blocks_, or of received_blocks_
  std::atomic<std::uint64_t> slots_{0};  // rows of received_blocks_ given out
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;  // blocks
  std::atomic<int> prepare_cursor_{0};
  const RestoredState* restored_ = nullptr;
  BoundModel proof_model_;  // of check_state, made at its first use
  Episode proof_;
  int process_ = 0;
  std::unique_ptr<WorkerPool> pool_;
};

}  // namespace aime
