#include "batch.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace aime {
namespace {

constexpr int kStateSignature = mjSTATE_INTEGRATION;

mjModel* copy_model(const mjModel* source) {
  mjModel* copy = nullptr;
  guarded_or_throw([&] { copy = mujoco().mj_copyModel(nullptr, source); }, "cannot copy the model");
  if (copy == nullptr) throw std::runtime_error("cannot copy the model: out of memory");
  return copy;
}

const std::uint8_t* bytes_of(const mjModel* model) { return static_cast<const std::uint8_t*>(model->buffer); }

// Where two models of the same layout differ, textures aside (they are most of the bytes, and no episode changes them).
std::vector<ModelChange> compare(const mjModel* base, const mjModel* changed) {
  if (base->nbuffer != changed->nbuffer) throw std::runtime_error("the model of an episode has another layout");
  constexpr std::size_t kWord = 8;
  const std::uint8_t* old_bytes = bytes_of(base);
  const std::uint8_t* new_bytes = bytes_of(changed);
  const auto size = static_cast<std::size_t>(base->nbuffer);
  const auto texture_start = static_cast<std::size_t>(base->tex_data - old_bytes);
  const std::size_t texture_end = texture_start + static_cast<std::size_t>(base->ntexdata);
  std::vector<ModelChange> changes;
  for (std::size_t offset = 0; offset < size; offset += kWord) {
    if (offset >= texture_start && offset + kWord <= texture_end) {
      offset = texture_end - texture_end % kWord;
      if (offset >= size) break;
    }
    const std::size_t count = std::min(kWord, size - offset);
    if (std::memcmp(old_bytes + offset, new_bytes + offset, count) == 0) continue;
    if (!changes.empty() && changes.back().offset + changes.back().bytes.size() == offset) {
      changes.back().bytes.insert(changes.back().bytes.end(), new_bytes + offset, new_bytes + offset + count);
    } else {
      changes.push_back({offset, {new_bytes + offset, new_bytes + offset + count}});
    }
  }
  return changes;
}

}  // namespace

Batch::Batch(const mjModel* model, const BatchSettings& settings)
    : settings_(settings), process_(static_cast<int>(getpid())) {
  base_ = copy_model(model);
  try {
    task_ = make_task(settings.domain, settings.task, base_);
    environments_.resize(static_cast<std::size_t>(settings.num_envs));
    for (Environment& environment : environments_) {
      guarded_or_throw([&] { environment.data = mujoco().mj_makeData(base_); }, "cannot make the simulation data");
      if (environment.data == nullptr) throw std::runtime_error("cannot make the simulation data: out of memory");
    }
    workers_.resize(static_cast<std::size_t>(settings.num_threads));
    for (Worker& worker : workers_) {
      worker.model = copy_model(base_);
      apply_render_settings(worker.model, settings_.render);
    }
    allocate();
    pool_ = std::make_unique<WorkerPool>(settings.num_threads, [this](int worker) { finish(worker); });
  } catch (...) {
    for (Environment& environment : environments_) {
      if (environment.data != nullptr) mujoco().mj_deleteData(environment.data);
    }
    for (Worker& worker : workers_) {
      if (worker.model != nullptr) mujoco().mj_deleteModel(worker.model);
    }
    mujoco().mj_deleteModel(base_);
    throw;
  }
}

Batch::~Batch() {
  if (forked()) {
    // The child of a fork has neither the threads nor their GL contexts: to join or free them would hang.
    static_cast<void>(pool_.release());
    for (Worker& worker : workers_) static_cast<void>(worker.renderer.release());
    return;
  }
  pool_.reset();
  for (Environment& environment : environments_) mujoco().mj_deleteData(environment.data);
  for (Worker& worker : workers_) mujoco().mj_deleteModel(worker.model);
  mujoco().mj_deleteModel(base_);
}

bool Batch::forked() const { return static_cast<int>(getpid()) != process_; }

void Batch::finish(int worker) { workers_[static_cast<std::size_t>(worker)].renderer.reset(); }

std::size_t Batch::index(int env) const {
  if (env < 0 || env >= settings_.num_envs) throw std::out_of_range("no environment " + std::to_string(env));
  return static_cast<std::size_t>(env);
}

void Batch::allocate() {
  const auto envs = static_cast<std::size_t>(settings_.num_envs);
  const std::size_t area =
      static_cast<std::size_t>(settings_.render.height) * static_cast<std::size_t>(settings_.render.width);
  for (std::shared_ptr<Results>& shared : results_) {
    shared = std::make_shared<Results>();
    Results& results = *shared;
    results.observation.resize(envs * static_cast<std::size_t>(task_->observation_size()));
    results.reward.resize(envs);
    results.discount.resize(envs, 1.0);
    results.step_type.resize(envs, kFirst);
    results.qpos.resize(envs * static_cast<std::size_t>(base_->nq));
    results.qvel.resize(envs * static_cast<std::size_t>(base_->nv));
    results.pixels.resize(envs * area * 3);
    if (settings_.render.segmentation) {
      results.segmentation.resize(envs * area);
      results.body_mask.resize(envs * area);
    }
  }
}

void Batch::load(int env, const mjModel* model, const mjData* data) {
  Environment& environment = environments_[index(env)];
  std::vector<ModelChange> changes = compare(base_, model);
  guarded_or_throw([&] { mujoco().mj_copyData(environment.data, model, data); }, "cannot copy the episode's state");
  set_model_changes(env, std::move(changes));
  environment.step_count = 0;
  environment.fault.clear();
}

void Batch::set_model_changes(int env, std::vector<ModelChange> changes) {
  Environment& environment = environments_[index(env)];
  const auto size = static_cast<std::size_t>(base_->nbuffer);
  for (const ModelChange& change : changes) {
    if (change.bytes.size() > size || change.offset > size - change.bytes.size()) {
      throw std::invalid_argument("a model change lies outside this model");
    }
  }
  for (Worker& worker : workers_) {
    if (worker.applied == &environment) unbind(worker);
  }
  environment.changes = std::move(changes);
}

void Batch::unbind(Worker& worker) {
  if (worker.applied == nullptr) return;
  for (const ModelChange& change : worker.applied->changes) {
    std::memcpy(static_cast<std::uint8_t*>(worker.model->buffer) + change.offset, bytes_of(base_) + change.offset,
                change.bytes.size());
  }
  worker.applied = nullptr;
}

void Batch::bind(Worker& worker, const Environment& environment) {
  if (worker.applied == &environment) return;
  unbind(worker);
  for (const ModelChange& change : environment.changes) {
    std::memcpy(static_cast<std::uint8_t*>(worker.model->buffer) + change.offset, change.bytes.data(),
                change.bytes.size());
  }
  worker.applied = &environment;
}

void Batch::run(const double* actions, const std::vector<Command>& commands) {
  current_ = 1 - current_;
  const auto action_size = static_cast<std::size_t>(base_->nu);
  pool_->run(settings_.num_envs, [&](int worker, int env) {
    const auto row = static_cast<std::size_t>(env);
    try {
      carry_out(worker, env, commands[row], actions + row * action_size);
    } catch (const std::exception& error) {
      throw std::runtime_error(settings_.domain + " " + settings_.task + ", environment " + std::to_string(env) + ": " +
                               error.what());
    }
  });
}

void Batch::carry_out(int worker_index, int env, Command command, const double* action) {
  Environment& environment = environments_[index(env)];
  Worker& worker = workers_[static_cast<std::size_t>(worker_index)];
  Results& results = now();
  const Results& previous = before();
  const auto row = static_cast<std::size_t>(env);
  bind(worker, environment);
  switch (command) {
    case Command::kFirst:
      results.reward[row] = 0.0;
      results.discount[row] = 1.0;
      results.step_type[row] = kFirst;
      break;
    case Command::kObserve:
      results.reward[row] = previous.reward[row];
      results.discount[row] = previous.discount[row];
      results.step_type[row] = previous.step_type[row];
      if (!environment.fault.empty()) {
        repeat_previous(env);
        return;
      }
      break;
    case Command::kStep:
      step(worker.model, environment, env, action);
      if (!environment.fault.empty()) {
        repeat_previous(env);
        return;
      }
      break;
  }
  report_state(worker, worker_index, environment, env);
}

void Batch::step(const mjModel* model, Environment& environment, int env, const double* action) {
  Results& results = now();
  const auto row = static_cast<std::size_t>(env);
  double total = 0.0;
  double discount = 1.0;
  StepType type = kMid;
  std::copy_n(action, model->nu, environment.data->ctrl);
  for (int repeat = 0; repeat < settings_.action_repeat; ++repeat) {
    if (!control_step(model, environment)) {
      // The state is lost: no bootstrapping across it.
      type = kLast;
      discount = 0.0;
      break;
    }
    total += task_->reward(model, environment.data);
    ++environment.step_count;
    if (static_cast<double>(environment.step_count) >= settings_.step_limit) {
      type = kLast;
      break;
    }
    if (const std::optional<double> end = task_->termination(model, environment.data)) {
      type = kLast;
      discount = *end;
      break;
    }
  }
  results.reward[row] = total;
  results.discount[row] = discount;
  results.step_type[row] = type;
}

// dm_control's legacy step: positions and velocities, and all that follows from them, are up to date afterwards.
bool Batch::control_step(const mjModel* model, Environment& environment) {
  const MujocoApi& mj = mujoco();
  mjData* data = environment.data;
  int before[mjNWARNING];
  for (int kind = 0; kind < mjNWARNING; ++kind) before[kind] = data->warning[kind].number;
  const bool runge_kutta = model->opt.integrator == mjINT_RK4;
  const int full_steps = runge_kutta ? settings_.substeps : settings_.substeps - 1;
  MujocoMessages messages;
  guarded(
      [&] {
        if (!runge_kutta) mj.mj_step2(model, data);
        for (int count = 0; count < full_steps; ++count) mj.mj_step(model, data);
        mj.mj_step1(model, data);
      },
      messages);
  bool warned = false;
  for (int kind = 0; kind < mjNWARNING; ++kind) warned = warned || data->warning[kind].number > before[kind];
  if (!messages.failed && !warned) return true;
  environment.fault = messages.failed ? messages.error : messages.warning;
  // An error leaves MuJoCo's stack allocator in the middle of a function.
  if (messages.failed) guarded([&] { mj.mj_resetData(model, data); }, messages);
  if (environment.fault.empty()) environment.fault = "MuJoCo raised a warning";
  return false;
}

// After a fault the state is MuJoCo's reset state, which belongs to no episode: the last good report stands.
void Batch::repeat_previous(int env) {
  const Results& from = before();
  Results& to = now();
  const auto copy_row = [&](const auto& source, auto& target) {
    const std::size_t width = source.size() / static_cast<std::size_t>(settings_.num_envs);
    std::copy_n(source.data() + static_cast<std::size_t>(env) * width, width,
                target.data() + static_cast<std::size_t>(env) * width);
  };
  copy_row(from.observation, to.observation);
  copy_row(from.qpos, to.qpos);
  copy_row(from.qvel, to.qvel);
  copy_row(from.pixels, to.pixels);
  copy_row(from.segmentation, to.segmentation);
  copy_row(from.body_mask, to.body_mask);
}

void Batch::report_state(Worker& worker, int worker_index, Environment& environment, int env) {
  Results& results = now();
  const auto row = static_cast<std::size_t>(env);
  const mjData* data = environment.data;
  task_->observe(worker.model, data,
                 results.observation.data() + row * static_cast<std::size_t>(task_->observation_size()));
  std::copy_n(data->qpos, base_->nq, results.qpos.data() + row * static_cast<std::size_t>(base_->nq));
  std::copy_n(data->qvel, base_->nv, results.qvel.data() + row * static_cast<std::size_t>(base_->nv));
  const RenderSettings& render = settings_.render;
  if (render.height == 0) return;
  if (!worker.renderer) worker.renderer = std::make_unique<Renderer>(worker.model, render, worker_index);
  const std::size_t area = static_cast<std::size_t>(render.height) * static_cast<std::size_t>(render.width);
  worker.renderer->render(worker.model, environment.data, results.pixels.data() + row * area * 3,
                          render.segmentation ? results.segmentation.data() + row * area : nullptr,
                          render.segmentation ? results.body_mask.data() + row * area : nullptr);
}

int Batch::state_size() const { return mujoco().mj_stateSize(base_, kStateSignature); }

void Batch::get_state(double* out) const {
  const auto size = static_cast<std::size_t>(state_size());
  for (std::size_t env = 0; env < environments_.size(); ++env) {
    mujoco().mj_getState(base_, environments_[env].data, out + env * size, kStateSignature);
  }
}

void Batch::set_state(const double* states) {
  const MujocoApi& mj = mujoco();
  const auto size = static_cast<std::size_t>(state_size());
  pool_->run(settings_.num_envs, [&](int worker_index, int env) {
    Worker& worker = workers_[static_cast<std::size_t>(worker_index)];
    Environment& environment = environments_[index(env)];
    bind(worker, environment);
    guarded_or_throw(
        [&] {
          mj.mj_setState(worker.model, environment.data, states + static_cast<std::size_t>(env) * size,
                         kStateSignature);
          // What mj_step1 leaves behind is what the next step and the observation start from. (mj_forward would also
          // overwrite the solver's warm start.)
          mj.mj_step1(worker.model, environment.data);
        },
        "cannot restore the state");
    environment.fault.clear();
  });
}

void Batch::set_report(int env, double reward, double discount, StepType type) {
  Results& results = now();
  results.reward[index(env)] = reward;
  results.discount[index(env)] = discount;
  results.step_type[index(env)] = type;
}

std::string Batch::renderer_description() const {
  std::string text;
  for (const Worker& worker : workers_) {
    if (!worker.renderer) continue;
    text += (text.empty() ? "" : ", ") + worker.renderer->description();
  }
  return text;
}

}  // namespace aime
