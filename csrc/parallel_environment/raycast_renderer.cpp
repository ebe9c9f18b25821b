#include "raycast_renderer.hpp"

#include <utility>

namespace aime {

RaycastRenderer::RaycastRenderer(const mjModel* model, const RenderSettings& settings, RenderAssets assets)
    : settings_(settings),
      raycaster_(std::move(assets), settings.height, settings.width, settings.samples, settings.instructions,
                 scene_geoms(model)) {
  const MujocoApi& mj = mujoco();
  mj.mjv_defaultScene(&scene_);
  mj.mjv_defaultOption(&option_);
  mj.mjv_defaultCamera(&camera_);
  guarded_or_throw([&] { mj.mjv_makeScene(model, &scene_, scene_geoms(model)); }, "cannot make the scene");
  option_.flags[mjVIS_RANGEFINDER] = 0;  // as dm_control's cameras
  camera_.fixedcamid = settings.camera;
  camera_.type = settings.camera < 0 ? mjCAMERA_FREE : mjCAMERA_FIXED;
  if (settings.camera < 0) mj.mjv_defaultFreeCamera(model, &camera_);
}

RaycastRenderer::~RaycastRenderer() { mujoco().mjv_freeScene(&scene_); }

void RaycastRenderer::render(const mjModel* model, mjData* data, const Picture& picture) {
  guarded_or_throw([&] { mujoco().mjv_updateScene(model, data, &option_, nullptr, &camera_, mjCAT_ALL, &scene_); },
                   "rendering failed");
  raycaster_.draw(scene_, {picture.pixels, picture.segmentation, picture.depth});
  if (picture.body_mask == nullptr) return;
  const std::size_t area = static_cast<std::size_t>(settings_.height) * static_cast<std::size_t>(settings_.width);
  for (std::size_t index = 0; index < area; ++index) {
    const std::int32_t geom = picture.segmentation[index];
    picture.body_mask[index] = geom >= 0 && model->geom_bodyid[geom] != 0 ? 1 : 0;
  }
}

std::string RaycastRenderer::description() const {
  return std::string("ray caster (") + raycaster_.instructions() + ", " + std::to_string(settings_.samples) +
         (settings_.samples == 1 ? " sample)" : " samples)");
}

}  // namespace aime
