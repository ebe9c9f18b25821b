// dm_control/suite/dog.py: Stand, Move and Fetch.
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

#include <limits>
#include <stdexcept>

namespace aime {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMaxUprightAngle = 30.0 * kPi / 180.0;
constexpr double kStandHeightFraction = 0.9;
constexpr double kBiteMargin = 2.0;

class Stand : public Task {
 public:
  explicit Stand(const mjModel* model)
      : torso_(object_id(model, mjOBJ_BODY, "torso")),
        pelvis_(object_id(model, mjOBJ_BODY, "pelvis")),
        skull_(object_id(model, mjOBJ_BODY, "skull")),
        velocity_(sensor_address(model, "torso_linvel")) {
    for (int joint = 0; joint < model->njnt; ++joint) {
      if (model->jnt_type[joint] != mjJNT_HINGE) continue;
      hinge_positions_.push_back(model->jnt_qposadr[joint]);
      hinge_velocities_.push_back(model->jnt_dofadr[joint]);
    }
    for (std::size_t sensor = 0; sensor < 3; ++sensor) {
      inertial_[sensor] = sensor_address(model, std::array{"accelerometer", "velocimeter", "gyro"}[sensor]);
    }
    for (std::size_t limb = 0; limb < 4; ++limb) {
      forces_[limb] = sensor_address(model, std::array{"foot_L", "foot_R", "hand_L", "hand_R"}[limb]);
      touch_[limb] = sensor_address(model, std::array{"palm_L", "palm_R", "sole_L", "sole_R"}[limb]);
    }
    body_weight_ = -model->opt.gravity[2] * model->body_subtreemass[torso_];
    measure_stand_heights(model);
    const int hinges = static_cast<int>(hinge_positions_.size());
    fields_ = {{"joint_angles", {hinges}},
               {"joint_velocites", {hinges}},  // dm_control's spelling
               {"torso_pelvis_height", {2}},
               {"z_projection", {9}},
               {"torso_com_velocity", {3}},
               {"inertial_sensors", {9}},
               {"foot_forces", {12}},
               {"touch_sensors", {4}},
               {"actuator_state", {static_cast<int>(model->na)}}};
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    for (const int hinge : hinge_positions_) *out++ = data->qpos[hinge];
    for (const int hinge : hinge_velocities_) *out++ = data->qvel[hinge];
    *out++ = data->xpos[3 * torso_ + 2];
    *out++ = data->xpos[3 * pelvis_ + 2];
    for (const int body : {skull_, torso_, pelvis_}) out = std::copy_n(data->xmat + 9 * body + kZX, 3, out);
    out = write(torso_velocity(data), out);
    for (const int sensor : inertial_) out = std::copy_n(data->sensordata + sensor, 3, out);
    for (const int sensor : forces_) out = std::copy_n(data->sensordata + sensor, 3, out);
    for (const int sensor : touch_) *out++ = data->sensordata[sensor];
    out = std::copy_n(data->act, model->na, out);
    observe_task(model, data, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    double product = height_reward(data, torso_, torso_height_) * height_reward(data, pelvis_, pelvis_height_);
    const double cosine = std::cos(kMaxUprightAngle);
    const Tolerance upright{cosine, kInfinity, cosine + 1.0, Sigmoid::kLinear, 0.0};
    for (const int body : {skull_, torso_, pelvis_}) product *= upright(data->xmat[9 * body + kZZ]);
    double force = 0.0;
    for (const int sensor : touch_) force += data->sensordata[sensor];
    product *= Tolerance{body_weight_, kInfinity, body_weight_, Sigmoid::kLinear, 0.9}(force);
    return product * task_reward(model, data);
  }

 protected:
  virtual void observe_task(const mjModel* /*model*/, const mjData* /*data*/, double* /*out*/) const {}
  // The product of the factors that come on top of those for standing.
  virtual double task_reward(const mjModel* /*model*/, const mjData* /*data*/) const { return 1.0; }

  // Of the centre of mass, in the torso's frame.
  Vector3 torso_velocity(const mjData* data) const {
    const double* velocity = data->sensordata + velocity_;
    return in_frame({velocity[0], velocity[1], velocity[2]}, data->xmat + 9 * torso_);
  }

 private:
  static double height_reward(const mjData* data, int body, double height) {
    return Tolerance{height, kInfinity, height}(data->xpos[3 * body + 2]);
  }

  // Above these heights, a part of those of the default pose, the dog stands.
  void measure_stand_heights(const mjModel* model) {
    mjData* data = nullptr;
    guarded_or_throw([&] { data = mujoco().mj_makeData(model); }, "cannot make the simulation data");
    if (data == nullptr) throw std::runtime_error("cannot make the simulation data: out of memory");
    MujocoMessages messages;
    guarded([&] { mujoco().mj_kinematics(model, data); }, messages);
    torso_height_ = data->xpos[3 * torso_ + 2] * kStandHeightFraction;
    pelvis_height_ = data->xpos[3 * pelvis_ + 2] * kStandHeightFraction;
    mujoco().mj_deleteData(data);
    if (messages.failed) throw_mujoco_error("cannot compute the default pose", messages);
  }

  int torso_;
  int pelvis_;
  int skull_;
  int velocity_;
  std::vector<int> hinge_positions_;
  std::vector<int> hinge_velocities_;
  std::array<int, 3> inertial_{};
  std::array<int, 4> forces_{};
  std::array<int, 4> touch_{};
  double body_weight_ = 0.0;
  double torso_height_ = 0.0;
  double pelvis_height_ = 0.0;
};

class Move final : public Stand {
 public:
  Move(const mjModel* model, double speed) : Stand(model), speed_(speed) {}

 private:
  double task_reward(const mjModel* /*model*/, const mjData* data) const override {
    const Tolerance forward{speed_, 2.0 * speed_, std::max(1.0, speed_), Sigmoid::kLinear, 0.0};
    return (4.0 * forward(torso_velocity(data)[0]) + 1.0) / 5.0;
  }

  double speed_;
};

class Fetch final : public Stand {
 public:
  explicit Fetch(const mjModel* model)
      : Stand(model),
        head_(object_id(model, mjOBJ_SITE, "head")),
        upper_bite_(object_id(model, mjOBJ_SITE, "upper_bite")),
        lower_bite_(object_id(model, mjOBJ_SITE, "lower_bite")),
        ball_(object_id(model, mjOBJ_GEOM, "ball")),
        target_(object_id(model, mjOBJ_GEOM, "target")),
        floor_(object_id(model, mjOBJ_GEOM, "floor")) {
    fields_.push_back({"ball_state", {6}});
    fields_.push_back({"target_position", {3}});
  }

 private:
  void observe_task(const mjModel* model, const mjData* data, double* out) const override {
    const double* frame = data->site_xmat + 9 * head_;
    const double* head = data->site_xpos + 3 * head_;
    double ball_velocity[6];  // angular, then linear
    double head_velocity[6];
    mujoco().mj_objectVelocity(model, data, mjOBJ_GEOM, ball_, ball_velocity, 0);
    mujoco().mj_objectVelocity(model, data, mjOBJ_SITE, head_, head_velocity, 0);
    out = write(in_frame(difference(data->geom_xpos + 3 * ball_, head), frame), out);
    out = write(in_frame(difference(ball_velocity + 3, head_velocity + 3), frame), out);
    write(in_frame(difference(data->geom_xpos + 3 * target_, head), frame), out);
  }

  double task_reward(const mjModel* model, const mjData* data) const override {
    const double* ball = data->geom_xpos + 3 * ball_;
    const double mouth =
        0.5 * (distance(ball, data->site_xpos + 3 * upper_bite_) + distance(ball, data->site_xpos + 3 * lower_bite_));
    const double to_target = distance(ball, data->geom_xpos + 3 * target_);
    const double radius = model->geom_size[3 * target_];
    const Tolerance reached{0.0, model->site_size[3 * upper_bite_], kBiteMargin, Sigmoid::kReciprocal};
    const Tolerance brought{0.0, radius, model->geom_size[3 * floor_], Sigmoid::kReciprocal};
    // A ball that has been brought may be let go of.
    const double reach = to_target < 2.0 * radius ? 1.0 : (6.0 * reached(mouth) + 1.0) / 7.0;
    return reach * ((brought(to_target) + 1.0) / 2.0);
  }

  int head_;
  int upper_bite_;
  int lower_bite_;
  int ball_;
  int target_;
  int floor_;
};

}  // namespace

std::unique_ptr<Task> make_dog(const std::string& task, const mjModel* model) {
  if (task == "fetch") return std::make_unique<Fetch>(model);
  if (task == "walk") return std::make_unique<Move>(model, 1.0);
  if (task == "trot") return std::make_unique<Move>(model, 3.0);
  if (task == "run") return std::make_unique<Move>(model, 9.0);
  return std::make_unique<Stand>(model);
}

}  // namespace aime
