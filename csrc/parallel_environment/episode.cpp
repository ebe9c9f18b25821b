#include "episode.hpp"

#include <stdexcept>

namespace aime {
namespace {

// Runs `operation` and throws when MuJoCo reports an error or counts a warning, as Physics.check_invalid_state does.
template <typename Operation>
void checked(mjData* data, const char* what, Operation&& operation) {
  int before[mjNWARNING];
  for (int kind = 0; kind < mjNWARNING; ++kind) before[kind] = data->warning[kind].number;
  MujocoMessages messages;
  guarded(operation, messages);
  if (messages.failed) throw_mujoco_error(what, messages);
  for (int kind = 0; kind < mjNWARNING; ++kind) {
    if (data->warning[kind].number > before[kind]) {
      throw std::runtime_error(std::string(what) + ": " +
                               (messages.warning[0] != '\0' ? messages.warning : "MuJoCo raised a warning"));
    }
  }
}

// mjModel.opt.disableflags with actuation disabled, for the life of the object.
class ActuationDisabled {
 public:
  explicit ActuationDisabled(mjModel* model) : model_(model), flags_(model->opt.disableflags) {
    model->opt.disableflags |= mjDSBL_ACTUATION;
  }
  ~ActuationDisabled() { model_->opt.disableflags = flags_; }
  ActuationDisabled(const ActuationDisabled&) = delete;
  ActuationDisabled& operator=(const ActuationDisabled&) = delete;

 private:
  mjModel* model_;
  int flags_;
};

}  // namespace

void begin_episode(const Task& task, mjModel* model, mjData* data, RandomState& random) {
  guarded_or_throw([&] { mujoco().mj_resetData(model, data); }, "cannot reset the simulation data");
  {
    // dm_control ignores warnings here: the default pose of some models is not a sound one.
    const ActuationDisabled disabled(model);
    guarded_or_throw([&] { mujoco().mj_forward(model, data); }, "cannot compute the default pose");
  }
  task.initialise(model, data, random);
  forward_without_actuation(model, data);
}

void forward_without_actuation(mjModel* model, mjData* data) {
  const ActuationDisabled disabled(model);
  checked(data, "the first state of an episode is not sound", [&] { mujoco().mj_forward(model, data); });
}

void physics_steps(const mjModel* model, mjData* data, int count) {
  const MujocoApi& mj = mujoco();
  const bool runge_kutta = model->opt.integrator == mjINT_RK4;
  checked(data, "settling before an episode failed", [&] {
    if (!runge_kutta) mj.mj_step2(model, data);
    for (int step = runge_kutta ? 0 : 1; step < count; ++step) mj.mj_step(model, data);
    mj.mj_step1(model, data);
  });
}

void randomize_limited_and_rotational_joints(const mjModel* model, mjData* data, RandomState& random) {
  for (int joint = 0; joint < model->njnt; ++joint) {
    const int kind = model->jnt_type[joint];
    if (kind != mjJNT_HINGE && kind != mjJNT_SLIDE) {
      throw std::logic_error("only hinges and slides are drawn in C++");
    }
    double& position = data->qpos[model->jnt_qposadr[joint]];
    if (model->jnt_limited[joint]) {
      position = random.uniform(model->jnt_range[2 * joint], model->jnt_range[2 * joint + 1]);
    } else if (kind == mjJNT_HINGE) {
      position = random.uniform(-kPi, kPi);
    }
  }
}

void randomize_until_free(mjModel* model, mjData* data, RandomState& random, int max_attempts) {
  for (int attempt = 0; attempt < max_attempts; ++attempt) {
    randomize_limited_and_rotational_joints(model, data, random);
    forward_without_actuation(model, data);
    if (data->ncon == 0) return;
  }
  throw std::runtime_error("no collision-free state after " + std::to_string(max_attempts) + " attempts");
}

}  // namespace aime
