// One environment of a batch: the episode that runs, and the next one, begun ahead so that an autoreset is a swap.
#pragma once

#include "callback_task.hpp"
#include "model_change.hpp"
#include "mujoco_api.hpp"
#include "random_state.hpp"
#include "results.hpp"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace aime {

using ModelChanges = std::vector<ModelChange>;
// Never changed once made: an environment and the worker whose model carries them share them. Null: no changes.
using SharedChanges = std::shared_ptr<const ModelChanges>;

mjModel* copy_model(const mjModel* source);

// Where two models of the same layout differ, textures aside (most of the bytes, and no episode changes them).
ModelChanges compare_models(const mjModel* base, const mjModel* changed);

// Overwrites these bytes of a model of the same layout.
void write_changes(mjModel* model, const ModelChanges& changes);
// Gives these bytes of a model the values of `base`.
void revert_changes(mjModel* model, const mjModel* base, const ModelChanges& changes);

// A worker's private model, and the changes of one environment in it.
class BoundModel {
 public:
  BoundModel() = default;
  ~BoundModel();
  BoundModel(BoundModel&& other) noexcept;
  BoundModel(const BoundModel&) = delete;
  BoundModel& operator=(const BoundModel&) = delete;
  BoundModel& operator=(BoundModel&&) = delete;

  // `base` must outlive this.
  void copy(const mjModel* base);
  // The model with these changes and no others.
  mjModel* bind(const SharedChanges& changes);
  // After something wrote into the model: these bytes are its changes now.
  void adopt(SharedChanges changes) { bound_ = std::move(changes); }
  mjModel* get() const { return model_; }

 private:
  const mjModel* base_ = nullptr;
  mjModel* model_ = nullptr;
  SharedChanges bound_;
};

// The physics of one episode.
struct Episode {
  Episode() = default;
  ~Episode();
  Episode(const Episode&) = delete;
  Episode& operator=(const Episode&) = delete;

  // Makes the simulation data on first use.
  mjData* make(const mjModel* model);
  // Simulation data of somebody else, who keeps and frees it.
  void borrow(mjData* other);
  void swap(Episode& other) noexcept;

  mjData* data = nullptr;
  SharedChanges changes;
  SharedChanges fields;  // those of the changes that the caller set

 private:
  bool borrowed_ = false;
};

// What an environment is to do next.
enum class Command : std::uint8_t {
  kStep,     // apply the action for action_repeat control steps
  kBegin,    // begin the next episode and report its first time step
  kObserve,  // report the last time step again
  kRestore,  // take the state from Batch::set_state and observe it
};

struct Environment {
  explicit Environment(const RowShape& shape) : report(shape) {}

  Episode current;
  Episode next;
  // Whoever moves it to kTaken owns `next` and `random` until it moves it on.
  enum Next : int { kEmpty, kTaken, kReady };
  std::atomic<int> next_status{kEmpty};
  RandomState random;
  SharedChanges fields;             // what the caller set in this environment's model, for the next episode
  bool awaits_fields = false;       // the caller sets fields before each episode, and has not yet
  RandomStream random_before_next;  // the stream as it was before `next` was drawn from it

  std::int64_t step_count = 0;
  std::string fault;  // why the last step failed; empty when it did not
  Report report;
  std::unique_ptr<TaskCallback> callback;  // null: the batch's task
  mjModel* model = nullptr;                // the callback's; others have the workers' models
  Command command = Command::kObserve;
  std::vector<double> action;
  bool in_flight = false;  // sent and not yet received; the caller's
};

// Owns an environment's next episode for a scope; waits while another thread begins it.
class NextEpisode {
 public:
  explicit NextEpisode(Environment& environment);
  // Puts the status where it belongs: the episode is ready, or there is none.
  ~NextEpisode();
  NextEpisode(const NextEpisode&) = delete;
  NextEpisode& operator=(const NextEpisode&) = delete;

  bool ready() const { return ready_; }
  void set_ready(bool ready) { ready_ = ready; }

 private:
  Environment& environment_;
  bool ready_;
};

}  // namespace aime
