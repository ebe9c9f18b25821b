// dm_control/suite/quadruped.py: Move, Escape and Fetch. Escape's terrain is a field of the model.
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <limits>

namespace aime {
namespace {

constexpr double kWalkSpeed = 0.5;
constexpr double kRunSpeed = 5.0;
constexpr double kEscapeDeviation = 20.0 * kPi / 180.0;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kTerrain = 0;  // the only height field

// A run of sensordata.
struct SensorRun {
  int start;
  int size;
};

class Quadruped : public Task {
 public:
  explicit Quadruped(const mjModel* model)
      : torso_(object_id(model, mjOBJ_BODY, "torso")),
        velocimeter_(sensor_address(model, "velocimeter")),
        imu_(sensors(model, mjSENS_GYRO, mjSENS_ACCELEROMETER)),
        force_torque_(sensors(model, mjSENS_FORCE, mjSENS_TORQUE)) {
    for (int joint = 0; joint < model->njnt; ++joint) {
      if (model->jnt_type[joint] != mjJNT_HINGE) continue;
      hinge_positions_.push_back(model->jnt_qposadr[joint]);
      hinge_velocities_.push_back(model->jnt_dofadr[joint]);
    }
    const int state = 2 * static_cast<int>(hinge_positions_.size()) + static_cast<int>(model->na);
    fields_ = {{"egocentric_state", {state}},
               {"torso_velocity", {3}},
               {"torso_upright", {}},
               {"imu", {size(imu_)}},
               {"force_torque", {size(force_torque_)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    for (const int hinge : hinge_positions_) *out++ = data->qpos[hinge];
    for (const int hinge : hinge_velocities_) *out++ = data->qvel[hinge];
    out = std::copy_n(data->act, model->na, out);
    out = std::copy_n(data->sensordata + velocimeter_, 3, out);
    *out++ = torso_frame(data)[kZZ];
    for (const SensorRun& run : imu_) out = std::copy_n(data->sensordata + run.start, run.size, out);
    for (const SensorRun& run : force_torque_) {
      for (int entry = 0; entry < run.size; ++entry) *out++ = std::asinh(data->sensordata[run.start + entry]);
    }
    observe_task(model, data, out);
  }

 protected:
  virtual void observe_task(const mjModel* /*model*/, const mjData* /*data*/, double* /*out*/) const {}

  static std::vector<SensorRun> sensors(const mjModel* model, mjtSensor one, mjtSensor other) {
    std::vector<SensorRun> found;
    for (int sensor = 0; sensor < model->nsensor; ++sensor) {
      const int type = model->sensor_type[sensor];
      if (type == one || type == other) found.push_back({model->sensor_adr[sensor], model->sensor_dim[sensor]});
    }
    return found;
  }

  static int size(const std::vector<SensorRun>& runs) {
    int total = 0;
    for (const SensorRun& run : runs) total += run.size;
    return total;
  }

  const double* torso_position(const mjData* data) const { return data->xpos + 3 * torso_; }
  const double* torso_frame(const mjData* data) const { return data->xmat + 9 * torso_; }

  // 1 while the torso leans less than `deviation` (radians), 0 upside down.
  double upright_reward(const mjData* data, double deviation) const {
    const double cosine = std::cos(deviation);
    return Tolerance{cosine, kInfinity, 1.0 + cosine, Sigmoid::kLinear, 0.0}(torso_frame(data)[kZZ]);
  }

  double forward_velocity(const mjData* data) const { return data->sensordata[velocimeter_]; }

 private:
  int torso_;
  int velocimeter_;
  std::vector<SensorRun> imu_;
  std::vector<SensorRun> force_torque_;
  std::vector<int> hinge_positions_;
  std::vector<int> hinge_velocities_;
};

class Move final : public Quadruped {
 public:
  Move(const mjModel* model, double speed) : Quadruped(model), speed_(speed) {}

  double reward(const mjModel* /*model*/, const mjData* data) const override {
    const Tolerance fast{speed_, kInfinity, speed_, Sigmoid::kLinear, 0.5};
    return upright_reward(data, 0.0) * fast(forward_velocity(data));
  }

 private:
  double speed_;
};

class Escape final : public Quadruped {
 public:
  explicit Escape(const mjModel* model)
      : Quadruped(model),
        workspace_(object_id(model, mjOBJ_SITE, "workspace")),
        rangefinders_(sensors(model, mjSENS_RANGEFINDER, mjSENS_RANGEFINDER)) {
    fields_.push_back({"origin", {3}});
    fields_.push_back({"rangefinder", {size(rangefinders_)}});
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double terrain = model->hfield_size[4 * kTerrain];
    const Tolerance escaped{terrain, kInfinity, terrain, Sigmoid::kLinear, 0.0};
    const double* workspace = data->site_xpos + 3 * workspace_;
    const double away = escaped(norm(Vector3{workspace[0], workspace[1], workspace[2]}, 3));
    return upright_reward(data, kEscapeDeviation) * away;
  }

 private:
  void observe_task(const mjModel* /*model*/, const mjData* data, double* out) const override {
    const double* torso = torso_position(data);
    for (const double entry : in_frame({torso[0], torso[1], torso[2]}, torso_frame(data))) *out++ = -entry;
    for (const SensorRun& run : rangefinders_) {
      for (int entry = 0; entry < run.size; ++entry) {
        const double reading = data->sensordata[run.start + entry];
        *out++ = reading == -1.0 ? 1.0 : std::tanh(reading);  // -1: the ray met nothing
      }
    }
  }

  int workspace_;
  std::vector<SensorRun> rangefinders_;
};

class Fetch final : public Quadruped {
 public:
  explicit Fetch(const mjModel* model)
      : Quadruped(model),
        ball_(object_id(model, mjOBJ_BODY, "ball")),
        ball_geom_(object_id(model, mjOBJ_GEOM, "ball")),
        floor_(object_id(model, mjOBJ_GEOM, "floor")),
        workspace_(object_id(model, mjOBJ_SITE, "workspace")),
        target_(object_id(model, mjOBJ_SITE, "target")),
        ball_root_(model->jnt_dofadr[object_id(model, mjOBJ_JOINT, "ball_root")]),
        root_(model->jnt_dofadr[object_id(model, mjOBJ_JOINT, "root")]) {
    fields_.push_back({"ball_state", {9}});
    fields_.push_back({"target_position", {3}});
  }

  double reward(const mjModel* model, const mjData* data) const override {
    const double arena = model->geom_size[3 * floor_] * std::sqrt(2.0);
    const double reach = model->site_size[3 * workspace_] + model->geom_size[3 * ball_geom_];
    const double* ball = data->xpos + 3 * ball_;
    const Tolerance reached{0.0, reach, arena, Sigmoid::kLinear, 0.0};
    const Tolerance fetched{0.0, model->site_size[3 * target_], arena, Sigmoid::kLinear, 0.0};
    const double reach_reward = reached(norm(difference(data->site_xpos + 3 * workspace_, ball), 2));
    const double fetch_reward = fetched(norm(difference(data->site_xpos + 3 * target_, ball), 2));
    return upright_reward(data, 0.0) * (reach_reward * (0.5 + 0.5 * fetch_reward));
  }

 private:
  void observe_task(const mjModel* /*model*/, const mjData* data, double* out) const override {
    const double* frame = torso_frame(data);
    const double* torso = torso_position(data);
    const double* spin = data->qvel + ball_root_ + 3;
    out = write(in_frame(difference(data->xpos + 3 * ball_, torso), frame), out);
    out = write(in_frame(difference(data->qvel + ball_root_, data->qvel + root_), frame), out);
    out = write(in_frame({spin[0], spin[1], spin[2]}, frame), out);
    write(in_frame(difference(data->site_xpos + 3 * target_, torso), frame), out);
  }

  int ball_;
  int ball_geom_;
  int floor_;
  int workspace_;
  int target_;
  int ball_root_;
  int root_;
};

}  // namespace

std::unique_ptr<Task> make_quadruped(const std::string& task, const mjModel* model) {
  if (task == "escape") return std::make_unique<Escape>(model);
  if (task == "fetch") return std::make_unique<Fetch>(model);
  return std::make_unique<Move>(model, task == "run" ? kRunSpeed : kWalkSpeed);
}

}  // namespace aime
