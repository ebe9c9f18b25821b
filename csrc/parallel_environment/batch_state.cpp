// The parts of Batch that begin, save and restore episodes.
#include <algorithm>
#include <stdexcept>

#include "batch.hpp"
#include "episode.hpp"
#include "model_check.hpp"

namespace aime {
namespace {

constexpr int kStateSignature = mjSTATE_INTEGRATION;

}  // namespace

void Batch::load(int env, const mjModel* model, const mjData* data) {
  Environment& environment = environments_[index(env)];
  ModelChanges changes = compare_models(base_.get(), model);
  NextEpisode next(environment);
  next.set_ready(false);
  mjData* target = environment.next.make(base_.get());
  guarded_or_throw([&] { mujoco().mj_copyData(target, model, data); }, "cannot copy the episode's state");
  environment.next.fields = environment.fields;
  environment.next.changes = changes.empty() ? nullptr : std::make_shared<const ModelChanges>(std::move(changes));
  next.set_ready(true);
}

std::vector<int> Batch::lacking(const std::vector<int>* ids, bool begin) const {
  std::vector<int> found;
  if (callbacks_ || (task_->initialises() && !settings_.randomised)) return found;
  const auto check = [&](int env) {
    const Environment& environment = environments_[index(env)];
    if (environment.next_status.load() == Environment::kReady) return;
    if (task_->initialises() && !environment.awaits_fields) return;
    const bool needs = begin || settings_.autoreset == Autoreset::kSameStep ||
                       (settings_.autoreset == Autoreset::kNextStep && environment.report.type == kLast);
    if (needs) found.push_back(env);
  };
  if (ids != nullptr) {
    for (const int env : *ids) check(env);
  } else {
    for (int env = 0; env < settings_.num_envs; ++env) check(env);
  }
  return found;
}

int Batch::unprepared() {
  if (settings_.autoreset == Autoreset::kDisabled) return -1;
  for (int count = 0; count < settings_.num_envs; ++count) {
    const int env = prepare_cursor_.load() % settings_.num_envs;
    if (environments_[static_cast<std::size_t>(env)].next_status.load() == Environment::kEmpty) return env;
    prepare_cursor_.store(env + 1);
  }
  return -1;
}

// One episode each time, so that a helper is not away for long when the next step comes.
bool Batch::prepare(int worker) {
  if (!task_->initialises()) return false;
  const int env = unprepared();
  if (env < 0) return false;
  Environment& environment = environments_[static_cast<std::size_t>(env)];
  NextEpisode next(environment);
  if (next.ready()) return true;
  if (environment.awaits_fields) return false;
  try {
    draw_next(worker, environment);
    next.set_ready(true);
  } catch (const std::exception&) {
    // Begun again when it is needed, where the caller hears of it.
    environment.random.set_stream(environment.random_before_next);
    return false;
  }
  return true;
}

// The caller owns the next episode.
void Batch::draw_next(int worker_index, Environment& environment) {
  BoundModel& bound = workers_[static_cast<std::size_t>(worker_index)].model;
  environment.random_before_next = environment.random.stream();
  mjData* data = environment.next.make(base_.get());
  mjModel* model = bound.bind(before_next(environment));
  const std::vector<ModelRange>& ranges = task_->model_ranges();
  SharedChanges changes = environment.fields;
  const auto adopt = [&] {
    if (ranges.empty()) return;
    ModelChanges all = changes ? *changes : ModelChanges();
    for (ModelChange& drawn : read_ranges(model, ranges)) all.push_back(std::move(drawn));
    changes = std::make_shared<const ModelChanges>(std::move(all));
    bound.adopt(changes);
  };
  try {
    begin_episode(*task_, model, data, environment.random);
  } catch (...) {
    adopt();
    throw;
  }
  adopt();
  environment.next.changes = std::move(changes);
  environment.next.fields = environment.fields;
}

// What dm_control's model holds when an episode begins: the caller's fields, and what the task drew for the last one.
SharedChanges Batch::before_next(const Environment& environment) const {
  if (!environment.fields && !environment.current.changes) return nullptr;
  ModelChanges changes = environment.fields ? *environment.fields : ModelChanges();
  if (environment.current.changes) {
    for (const ModelChange& change : *environment.current.changes) {
      const auto drawn = [&](const ModelRange& range) { return range.offset == change.offset; };
      const std::vector<ModelRange>& ranges = task_->model_ranges();
      if (std::any_of(ranges.begin(), ranges.end(), drawn)) changes.push_back(change);
    }
  }
  return std::make_shared<const ModelChanges>(std::move(changes));
}

void Batch::set_fields(int env, ModelChanges changes) {
  check_changes(changes);
  forget_next(env, nullptr);
  Environment& environment = environments_[index(env)];
  const NextEpisode next(environment);
  environment.fields = changes.empty() ? nullptr : std::make_shared<const ModelChanges>(std::move(changes));
  environment.awaits_fields = false;
}

// As dm_control's model is when this environment's next episode begins.
void Batch::lend_model(int env, mjModel* model) const {
  const Environment& environment = environments_[index(env)];
  restore(model);
  if (environment.current.changes) write_changes(model, *environment.current.changes);
  if (environment.current.fields) revert_changes(model, base_.get(), *environment.current.fields);
  if (environment.fields) write_changes(model, *environment.fields);
}

void Batch::restore(mjModel* model) const { revert_changes(model, base_.get(), compare(model)); }

void Batch::check_changes(const ModelChanges& changes) const {
  const auto size = static_cast<std::size_t>(base_->nbuffer);
  for (const ModelChange& change : changes) {
    if (change.bytes.size() > size || change.offset > size - change.bytes.size()) {
      throw std::invalid_argument("a model change lies outside this model");
    }
  }
}

void Batch::forget_next(int env, const RandomStream* stream) {
  Environment& environment = environments_[index(env)];
  NextEpisode next(environment);
  if (stream != nullptr) {
    environment.random.set_stream(*stream);
  } else if (next.ready()) {
    environment.random.set_stream(environment.random_before_next);
  }
  environment.awaits_fields = settings_.randomised;
  next.set_ready(false);
}

RandomStream Batch::stream(int env) {
  Environment& environment = environments_[index(env)];
  const NextEpisode next(environment);
  return next.ready() && task_->initialises() ? environment.random_before_next : environment.random.stream();
}

// The sensors come with it: those of accelerations and contacts are computed within a step, not from its state.
int Batch::state_size() const {
  return mujoco().mj_stateSize(base_.get(), kStateSignature) + static_cast<int>(base_->nsensordata);
}

void Batch::get_state(double* out) {
  require_settled();
  const auto size = static_cast<std::size_t>(state_size());
  for (std::size_t env = 0; env < environments_.size(); ++env) {
    if (callbacks_) read_changes(environments_[env]);
    const mjData* data = environments_[env].current.data;
    mujoco().mj_getState(base_.get(), data, out + env * size, kStateSignature);
    std::copy_n(data->sensordata, base_->nsensordata,
                out + (env + 1) * size - static_cast<std::size_t>(base_->nsensordata));
  }
}

void Batch::set_model_changes(int env, ModelChanges changes) {
  check_changes(changes);
  Environment& environment = environments_[index(env)];
  const NextEpisode next(environment);  // nobody reads the changes to begin the next episode meanwhile
  environment.current.fields = nullptr;
  environment.current.changes = changes.empty() ? nullptr : std::make_shared<const ModelChanges>(std::move(changes));
  if (environment.callback) lend_model(env, environment.model);
}

void Batch::check_state(const double* physics, const std::vector<ModelChanges>& changes) {
  const MujocoApi& mj = mujoco();
  if (changes.size() != environments_.size()) throw std::invalid_argument("as many changes as environments are needed");
  if (proof_model_.get() == nullptr) proof_model_.copy(base_.get());
  mjData* data = proof_.make(base_.get());
  for (int env = 0; env < settings_.num_envs; ++env, physics += state_size()) {
    const ModelChanges& own = changes[index(env)];
    check_changes(own);
    const mjModel* model = proof_model_.bind(own.empty() ? nullptr : std::make_shared<const ModelChanges>(own));
    if (!own.empty()) require_same_structure(base_.get(), model);
    MujocoMessages messages;
    guarded(
        [&] {
          mj.mj_resetData(model, data);
          mj.mj_setState(model, data, physics, kStateSignature);
          mj.mj_step1(model, data);
        },
        messages);
    const bool replaced = data->warning[mjWARN_BADQPOS].number > 0 || data->warning[mjWARN_BADQVEL].number > 0;
    if (!messages.failed && !replaced) continue;
    throw std::invalid_argument("the physics state of environment " + std::to_string(env) +
                                " cannot be restored: " + (messages.failed ? messages.error : messages.warning));
  }
}

void Batch::set_state(const RestoredState& state) {
  require_settled();
  for (Environment& environment : environments_) environment.command = Command::kRestore;
  restored_ = &state;
  start(true);
  finish();
  restored_ = nullptr;
}

void Batch::restore(int worker, Environment& environment, int env) {
  const MujocoApi& mj = mujoco();
  const auto row = static_cast<std::size_t>(env);
  const double* physics = restored_->physics + row * static_cast<std::size_t>(state_size());
  const mjModel* model = environment.callback
                             ? environment.model
                             : workers_[static_cast<std::size_t>(worker)].model.bind(environment.current.changes);
  guarded_or_throw(
      [&] {
        mj.mj_setState(model, environment.current.data, physics, kStateSignature);
        // What mj_step1 leaves behind is what the next step and the observation start from. (mj_forward would also
        // overwrite the solver's warm start.)
        mj.mj_step1(model, environment.current.data);
      },
      "cannot restore the state");
  const double* sensors = physics + state_size() - static_cast<int>(base_->nsensordata);
  std::copy_n(sensors, base_->nsensordata, environment.current.data->sensordata);
  environment.fault.clear();
  environment.step_count = restored_->step_count[row];
  Report& report = environment.report;
  report.reward = restored_->reward[row];
  report.discount = restored_->discount[row];
  report.type = static_cast<StepType>(restored_->step_type[row]);
  observe(worker, environment, restored_->frames == nullptr);
  if (restored_->frames != nullptr) {
    std::copy_n(restored_->frames + row * report.frames.size(), report.frames.size(), report.frames.begin());
  }
}

}  // namespace aime
