// dm_control/suite/fish.py: Upright and Swim. The target's place is a field of the model.
#include "../geometry.hpp"
#include "../task.hpp"
#include "../tolerance.hpp"

namespace aime {
namespace {

constexpr std::array<const char*, 7> kJoints = {"tail1",          "tail_twist",   "tail2",        "finright_roll",
                                                "finright_pitch", "finleft_roll", "finleft_pitch"};

class Fish final : public Task {
 public:
  Fish(const mjModel* model, bool swim)
      : swim_(swim),
        torso_(object_id(model, mjOBJ_BODY, "torso")),
        mouth_(object_id(model, mjOBJ_GEOM, "mouth")),
        target_(object_id(model, mjOBJ_GEOM, "target")) {
    for (std::size_t joint = 0; joint < kJoints.size(); ++joint) {
      joints_[joint] = model->jnt_qposadr[object_id(model, mjOBJ_JOINT, kJoints[joint])];
    }
    fields_ = {{"joint_angles", {static_cast<int>(kJoints.size())}}, {"upright", {}}};
    if (swim) fields_.push_back({"target", {3}});
    fields_.push_back({"velocity", {static_cast<int>(model->nv)}});
  }

  void observe(const mjModel* model, const mjData* data, double* out) const override {
    for (const int joint : joints_) *out++ = data->qpos[joint];
    *out++ = upright(data);
    if (swim_) out = write(mouth_to_target(data), out);
    std::copy_n(data->qvel, model->nv, out);
  }

  double reward(const mjModel* model, const mjData* data) const override {
    if (!swim_) return Tolerance{1.0, 1.0, 1.0}(upright(data));
    const double radii = model->geom_size[3 * mouth_] + model->geom_size[3 * target_];
    const double in_target = Tolerance{0.0, radii, 2.0 * radii}(norm(mouth_to_target(data), 3));
    const double is_upright = 0.5 * (upright(data) + 1.0);
    return (7.0 * in_target + is_upright) / 8.0;
  }

 private:
  double upright(const mjData* data) const { return data->xmat[9 * torso_ + kZZ]; }

  Vector3 mouth_to_target(const mjData* data) const {
    return in_frame(difference(data->geom_xpos + 3 * target_, data->geom_xpos + 3 * mouth_),
                    data->geom_xmat + 9 * mouth_);
  }

  bool swim_;
  int torso_;
  int mouth_;
  int target_;
  std::array<int, kJoints.size()> joints_{};
};

}  // namespace

std::unique_ptr<Task> make_fish(const std::string& task, const mjModel* model) {
  return std::make_unique<Fish>(model, task == "swim");
}

}  // namespace aime
