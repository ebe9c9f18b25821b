#include "batch.hpp"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>

#include "episode.hpp"

namespace aime {
namespace {

RowShape row_shape(const mjModel* model, const Task& task, const BatchSettings& settings) {
  RowShape shape;
  shape.observation = static_cast<std::size_t>(task.observation_size());
  shape.qpos = static_cast<std::size_t>(model->nq);
  shape.qvel = static_cast<std::size_t>(model->nv);
  shape.area = static_cast<std::size_t>(settings.render.height) * static_cast<std::size_t>(settings.render.width);
  shape.frame_stack = static_cast<std::size_t>(settings.frame_stack);
  shape.segmentation = settings.render.segmentation;
  shape.depth = settings.render.depth;
  shape.single = settings.single_precision;
  return shape;
}

std::unique_ptr<Task> task_of(const BatchSettings& settings, const TaskCallbacks& callbacks, const mjModel* model) {
  if (!callbacks.environments.empty()) return std::make_unique<CallbackTask>(callbacks.fields);
  return make_task(settings.domain, settings.task, model);
}

}  // namespace

Batch::Batch(const mjModel* model, const BatchSettings& settings, const std::vector<std::uint32_t>& seeds,
             TaskCallbacks callbacks)
    : settings_(settings),
      base_(copy_model(model)),
      task_(task_of(settings, callbacks, base_.get())),
      callbacks_(!callbacks.environments.empty()),
      legacy_step_(callbacks.legacy_step),
      assets_(make_render_assets(base_.get(), settings.render)),
      shape_(row_shape(base_.get(), *task_, settings)),
      process_(static_cast<int>(getpid())) {
  const auto envs = static_cast<std::size_t>(settings.num_envs);
  if (seeds.size() != envs) throw std::invalid_argument("as many seeds as environments are needed");
  if (callbacks_ && callbacks.environments.size() != envs) {
    throw std::invalid_argument("as many callbacks as environments are needed");
  }
  for (std::size_t env = 0; env < envs; ++env) {
    Environment& environment = environments_.emplace_back(shape_);
    if (callbacks_) {
      environment.callback = std::move(callbacks.environments[env]);
      adopt_physics(environment);
    } else {
      environment.current.make(base_.get());
    }
    environment.random = RandomState(seeds[env]);
    environment.awaits_fields = settings.randomised;
    environment.action.resize(static_cast<std::size_t>(callbacks_ ? callbacks.action_size : base_->nu));
  }
  workers_.resize(static_cast<std::size_t>(settings.num_threads));
  for (Worker& worker : workers_) {
    worker.model.copy(base_.get());
    apply_render_settings(worker.model.get(), settings_.render);
  }
  const bool keeps_final = settings.autoreset == Autoreset::kSameStep;
  for (int block = 0; block < 2; ++block) blocks_.push_back(std::make_shared<Results>(shape_, envs, keeps_final));
  if (settings.batch_size > 0) {
    // Two that the caller holds, and those that the environments in flight may be writing.
    const std::size_t count = (envs - 1) / batch_size() + 3;
    for (std::size_t block = 0; block < count; ++block) {
      received_blocks_.push_back(std::make_shared<Results>(shape_, batch_size(), keeps_final));
    }
  }
  // A GL context belongs to the thread it was made on, and the caller's thread may have contexts of its own. With
  // send and receive the caller has something else to do. Callbacks run Python, where the caller's thread would take
  // Ctrl-C for an error of the task.
  const bool gl = settings.render.height > 0 && settings.render.renderer == RendererKind::kGl;
  const bool caller_takes_part = !gl && !callbacks_ && settings.batch_size == 0;
  PoolWork work;
  work.job = [this](int worker, int env) { carry_out(worker, env); };
  work.idle = [this](int worker) { return prepare(worker); };
  work.finish = [this](int worker) { workers_[static_cast<std::size_t>(worker)].renderer.reset(); };
  pool_ = std::make_unique<WorkerPool>(settings.num_threads, caller_takes_part, settings.num_envs, std::move(work));
}

Batch::~Batch() {
  if (!forked()) {
    pool_.reset();
    return;
  }
  // The child of a fork has neither the threads nor their GL contexts: to join or free them would hang.
  static_cast<void>(pool_.release());
  for (Worker& worker : workers_) static_cast<void>(worker.renderer.release());
}

bool Batch::forked() const { return static_cast<int>(getpid()) != process_; }

std::size_t Batch::index(int env) const {
  if (env < 0 || env >= settings_.num_envs) throw std::out_of_range("no environment " + std::to_string(env));
  return static_cast<std::size_t>(env);
}

// --- handing out work ------------------------------------------------------------------------------------------------

void Batch::require_settled() const {
  if (in_flight() == 0) return;
  throw std::runtime_error("results of " + std::to_string(in_flight()) + " environments are outstanding: receive them");
}

void Batch::require_unfinished(const std::vector<int>* ids) const {
  if (settings_.autoreset != Autoreset::kDisabled) return;
  std::string ended;
  const auto check = [&](int env) {
    if (environments_[index(env)].report.type != kLast) return;
    ended += (ended.empty() ? "" : ", ") + std::to_string(env);
  };
  if (ids != nullptr) {
    for (const int env : *ids) check(env);
  } else {
    for (int env = 0; env < settings_.num_envs; ++env) check(env);
  }
  if (ended.empty()) return;
  throw std::runtime_error("the episodes of environments [" + ended + "] have ended: call reset([" + ended + "])");
}

void Batch::start(bool together) {
  if (together_ != together) together_ = together;  // others read it while some are in flight
  if (!together) return;
  current_ = 1 - current_;
  blocks_[static_cast<std::size_t>(current_)]->clear();
  pool_->post_all();
}

void Batch::start_steps(const double* actions) {
  require_settled();
  require_unfinished(nullptr);
  for (Environment& environment : environments_) {
    environment.command = Command::kStep;
    std::copy_n(actions, environment.action.size(), environment.action.begin());
    actions += environment.action.size();
  }
  start(true);
}

void Batch::start_episodes(const std::vector<int>* ids) {
  require_settled();
  for (Environment& environment : environments_) {
    environment.command = ids == nullptr ? Command::kBegin : Command::kObserve;
  }
  if (ids != nullptr) {
    for (const int env : *ids) environments_[index(env)].command = Command::kBegin;
  }
  start(true);
}

void Batch::finish() {
  pool_->wait_all();
  const Results& results = *blocks_[static_cast<std::size_t>(current_)];
  if (!results.failure.empty()) throw std::runtime_error(results.failure);
}

void Batch::send(const std::vector<int>& ids, const double* actions) {
  if (settings_.batch_size == 0) throw std::runtime_error("send needs an environment made with batch_size");
  std::vector<bool> seen(environments_.size());
  for (const int env : ids) {
    if (environments_[index(env)].in_flight || seen[index(env)]) {
      throw std::invalid_argument("environment " + std::to_string(env) +
                                  (seen[index(env)] ? " is named twice" : " is in flight: receive its result first"));
    }
    seen[index(env)] = true;
  }
  require_unfinished(&ids);
  const int count = static_cast<int>(ids.size());
  for (int row = 0; row < count; ++row) {
    Environment& environment = environments_[index(ids[static_cast<std::size_t>(row)])];
    environment.command = Command::kStep;
    environment.in_flight = true;
    std::copy_n(actions + static_cast<std::size_t>(row) * environment.action.size(), environment.action.size(),
                environment.action.begin());
  }
  sent_ += static_cast<std::uint64_t>(count);
  start(false);
  pool_->post(ids.data(), count);
}

int Batch::receive() {
  if (settings_.batch_size == 0) throw std::runtime_error("recv needs an environment made with batch_size");
  if (in_flight() < settings_.batch_size) {
    throw std::runtime_error("recv waits for " + std::to_string(settings_.batch_size) + " environments, but " +
                             std::to_string(in_flight()) + " are in flight: send actions first");
  }
  const std::size_t blocks = received_blocks_.size();
  const std::size_t wanted = received_ % blocks;
  Results& results = *received_blocks_[wanted];
  pool_->wait([&] { return results.written.load() == settings_.batch_size; });
  ++received_;
  // The block before the last one is the caller's no more.
  received_blocks_[(received_ + blocks - 3) % blocks]->clear();
  for (const std::int32_t env : results.env_id) environments_[index(env)].in_flight = false;
  if (!results.failure.empty()) throw std::runtime_error(results.failure);
  return static_cast<int>(wanted);
}

void Batch::drop_in_flight() {
  pool_->wait_all();
  if (settings_.batch_size == 0) return;
  const std::size_t blocks = received_blocks_.size();
  for (std::size_t offset = 0; offset + 2 < blocks; ++offset) received_blocks_[(received_ + offset) % blocks]->clear();
  sent_ = received_ * batch_size();
  slots_.store(sent_);
  for (Environment& environment : environments_) environment.in_flight = false;
}

// --- what a worker does
// ------------------------------------------------------------------------------------------------

void Batch::carry_out(int worker, int env) {
  Environment& environment = environments_[static_cast<std::size_t>(env)];
  std::string failure;
  try {
    switch (environment.command) {
      case Command::kBegin:
        begin(worker, environment);
        break;
      case Command::kStep:
        if (environment.report.type == kLast) {
          begin(worker, environment);  // without autoreset, ended environments are not stepped
        } else {
          step(worker, environment);
        }
        break;
      case Command::kRestore:
        restore(worker, environment, env);
        break;
      case Command::kObserve:
        break;
    }
  } catch (const std::exception& error) {
    failure = error.what();
    if (environment.callback) abandon(environment);
  }
  publish(worker, env, failure);
}

void Batch::publish(int worker, int env, const std::string& failure) {
  Environment& environment = environments_[static_cast<std::size_t>(env)];
  Report& report = environment.report;
  Results* results = nullptr;
  auto row = static_cast<std::size_t>(env);
  if (together_) {
    results = blocks_[static_cast<std::size_t>(current_)].get();
  } else {
    const std::uint64_t slot = slots_.fetch_add(1);
    results = received_blocks_[slot / batch_size() % received_blocks_.size()].get();
    row = slot % batch_size();
  }
  const auto add_failure = [&](const std::string& reason) {
    results->add_failure(settings_.domain + " " + settings_.task + ", environment " + std::to_string(env) + ": " +
                         reason);
  };
  if (!failure.empty()) add_failure(failure);
  if (!environment.fault.empty()) results->add_fault(env, environment.fault);
  results->env_id[row] = env;
  results->reward[row] = report.reward;
  results->discount[row] = report.discount;
  results->step_type[row] = report.type;
  if (settings_.autoreset == Autoreset::kSameStep && environment.command == Command::kStep && report.type == kLast) {
    results->final_rows.write(shape_, report, row);
    results->has_final[row] = 1;
    try {
      begin(worker, environment);
    } catch (const std::exception& error) {
      add_failure(error.what());
      if (environment.callback) abandon(environment);
    }
  }
  results->rows.write(shape_, report, row);
  results->written.fetch_add(1);
}

void Batch::begin(int worker, Environment& environment) {
  if (environment.callback) {
    begin_with_callback(environment);
  } else {
    NextEpisode next(environment);
    if (!next.ready()) {
      if (!task_->initialises()) throw std::runtime_error("no episode is loaded");
      draw_next(worker, environment);
    }
    environment.current.swap(environment.next);
    environment.awaits_fields = settings_.randomised;
    next.set_ready(false);
  }
  environment.step_count = 0;
  environment.fault.clear();
  environment.report.reward = 0.0;
  environment.report.discount = 1.0;
  environment.report.type = kFirst;
  observe(worker, environment, true);
}

void Batch::step(int worker, Environment& environment) {
  Report& report = environment.report;
  environment.fault.clear();
  report.reward = 0.0;
  report.discount = 1.0;
  report.type = kMid;
  if (environment.callback) {
    step_with_callback(worker, environment);
    return;
  }
  const mjModel* model = workers_[static_cast<std::size_t>(worker)].model.bind(environment.current.changes);
  const mjData* data = environment.current.data;
  std::copy(environment.action.begin(), environment.action.end(), data->ctrl);
  for (int repeat = 0; repeat < settings_.action_repeat; ++repeat) {
    if (!control_step(model, environment)) {
      // The state is lost, and MuJoCo's reset state belongs to no episode: no bootstrapping across it, and the last
      // sound observation stands.
      report.type = kLast;
      report.discount = 0.0;
      return;
    }
    report.reward += task_->reward(model, data);
    ++environment.step_count;
    if (static_cast<double>(environment.step_count) >= settings_.step_limit) {
      report.type = kLast;
      break;
    }
    if (const std::optional<double> end = task_->termination(model, data)) {
      report.type = kLast;
      report.discount = *end;
      break;
    }
  }
  observe(worker, environment, false);
}

// dm_control's legacy step: positions and velocities, and all that follows from them, are up to date afterwards.
// They are so before it as well, so the first half of mj_step would compute the same numbers again and is left out.
bool Batch::control_step(const mjModel* model, Environment& environment) {
  const MujocoApi& mj = mujoco();
  mjData* data = environment.current.data;
  int before[mjNWARNING];
  for (int kind = 0; kind < mjNWARNING; ++kind) before[kind] = data->warning[kind].number;
  const bool runge_kutta = model->opt.integrator == mjINT_RK4;
  // dm_control computes the first state with actuation disabled; its first step with this integrator begins anew. So do
  // all steps of callbacks, which may have written into the state.
  const bool callback = environment.callback != nullptr;
  const bool fresh = runge_kutta && (callback || environment.step_count == 0);
  MujocoMessages messages;
  guarded(
      [&] {
        for (int count = 0; count < settings_.substeps; ++count) {
          if (!legacy_step_) {
            mj.mj_step(model, data);
            continue;
          }
          if (fresh && (callback || count == 0)) {
            mj.mj_step(model, data);
          } else if (runge_kutta) {
            mj.mj_forwardSkip(model, data, mjSTAGE_VEL, 0);
            mj.mj_checkAcc(model, data);
            mj.mj_RungeKutta(model, data, 4);
          } else {
            mj.mj_step2(model, data);
          }
          mj.mj_step1(model, data);
        }
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

void Batch::observe(int worker_index, Environment& environment, bool first) {
  Worker& worker = workers_[static_cast<std::size_t>(worker_index)];
  if (environment.callback && shape_.area > 0) read_changes(environment);
  const mjModel* model = worker.model.bind(environment.current.changes);
  mjData* data = environment.current.data;
  Report& report = environment.report;
  if (environment.callback) {
    std::copy_n(environment.callback->observation(), shape_.observation, report.observation.begin());
  } else {
    task_->observe(model, data, report.observation.data());
  }
  std::copy_n(data->qpos, shape_.qpos, report.qpos.begin());
  std::copy_n(data->qvel, shape_.qvel, report.qvel.begin());
  if (shape_.area == 0) return;
  if (!worker.renderer) worker.renderer = make_renderer(model, settings_.render, assets_, worker_index);
  Picture picture;
  picture.pixels = report.next_frame(shape_);
  if (shape_.segmentation) {
    picture.segmentation = report.segmentation.data();
    picture.body_mask = report.body_mask.data();
  }
  if (shape_.depth) picture.depth = report.depth.data();
  worker.renderer->render(model, data, picture);
  if (first) report.repeat_frame(shape_);
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
