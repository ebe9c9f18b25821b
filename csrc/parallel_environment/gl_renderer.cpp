#include "gl_renderer.hpp"

#include <cstring>
#include <mutex>
#include <stdexcept>

namespace aime {

GlRenderer::GlRenderer(const mjModel* model, const RenderSettings& settings, int index) : settings_(settings) {
  const MujocoApi& mj = mujoco();
  const std::lock_guard<std::mutex> lock(gl_mutex());
  context_ = make_gl_context(index);
  context_->make_current();
  mj.mjr_defaultContext(&mjr_);
  mj.mjv_defaultScene(&scene_);
  mj.mjv_defaultOption(&option_);
  mj.mjv_defaultCamera(&camera_);
  try {
    guarded_or_throw(
        [&] {
          mj.mjr_makeContext(model, &mjr_, mjFONTSCALE_150);
          mj.mjr_setBuffer(mjFB_OFFSCREEN, &mjr_);
          mj.mjv_makeScene(model, &scene_, scene_geoms(model));
        },
        "MuJoCo cannot render here");
    if (mjr_.currentBuffer != mjFB_OFFSCREEN || mjr_.offWidth != settings.width || mjr_.offHeight != settings.height) {
      throw std::runtime_error("no offscreen framebuffer of " + std::to_string(settings.height) + " x " +
                               std::to_string(settings.width) + " pixels on " + context_->description());
    }
  } catch (...) {
    context_->release();
    throw;
  }
  option_.flags[mjVIS_RANGEFINDER] = 0;  // as dm_control's cameras
  camera_.fixedcamid = settings.camera;
  camera_.type = settings.camera < 0 ? mjCAMERA_FREE : mjCAMERA_FIXED;
  if (settings.camera < 0) mj.mjv_defaultFreeCamera(model, &camera_);
  const std::size_t area = static_cast<std::size_t>(settings.height) * static_cast<std::size_t>(settings.width);
  rows_.resize(area * 3);
  if (settings.depth) depth_rows_.resize(area);
}

GlRenderer::~GlRenderer() {
  const MujocoApi& mj = mujoco();
  const std::lock_guard<std::mutex> lock(gl_mutex());
  mj.mjv_freeScene(&scene_);
  mj.mjr_freeContext(&mjr_);
  context_->release();
}

void GlRenderer::draw(std::uint8_t* rows, float* depth) {
  const MujocoApi& mj = mujoco();
  const mjrRect view{0, 0, settings_.width, settings_.height};
  mj.mjr_render(view, &scene_, &mjr_);
  mj.mjr_readPixels(rows, depth, view, &mjr_);
}

void GlRenderer::render(const mjModel* model, mjData* data, const Picture& picture) {
  const std::size_t stride = static_cast<std::size_t>(settings_.width) * 3;
  const std::size_t height = static_cast<std::size_t>(settings_.height);
  guarded_or_throw(
      [&] {
        mujoco().mjv_updateScene(model, data, &option_, nullptr, &camera_, mjCAT_ALL, &scene_);
        draw(rows_.data(), picture.depth == nullptr ? nullptr : depth_rows_.data());
      },
      "rendering failed");
  for (std::size_t row = 0; row < height; ++row) {
    std::memcpy(picture.pixels + row * stride, rows_.data() + (height - 1 - row) * stride, stride);
  }
  if (picture.depth != nullptr) decode_depth(model, picture.depth);
  if (!settings_.segmentation) return;
  scene_.flags[mjRND_SEGMENT] = 1;
  scene_.flags[mjRND_IDCOLOR] = 1;
  guarded_or_throw([&] { draw(rows_.data()); }, "rendering of the segmentation failed");
  scene_.flags[mjRND_SEGMENT] = 0;
  scene_.flags[mjRND_IDCOLOR] = 0;
  decode_segmentation(model, picture);
}

void GlRenderer::decode_depth(const mjModel* model, float* depth) const {
  // The buffer has near / distance, scaled so that the near plane is 0 and the far plane 1.
  const double extent = model->stat.extent;
  const double near = static_cast<double>(model->vis.map.znear) * extent;
  const double far = static_cast<double>(model->vis.map.zfar) * extent;
  const auto width = static_cast<std::size_t>(settings_.width);
  for (std::size_t row = static_cast<std::size_t>(settings_.height); row-- > 0;) {
    for (std::size_t column = 0; column < width; ++column) {
      const double value = depth_rows_[row * width + column];
      *depth++ = static_cast<float>(near / (1.0 - value * (1.0 - near / far)));
    }
  }
}

void GlRenderer::decode_segmentation(const mjModel* model, const Picture& picture) {
  std::int32_t* segmentation = picture.segmentation;
  std::uint8_t* body_mask = picture.body_mask;
  // The colour of a pixel is segid + 1 in little-endian bytes; 0 is the background.
  geom_of_segid_.assign(static_cast<std::size_t>(scene_.ngeom) + 1, -1);
  for (int index = 0; index < scene_.ngeom; ++index) {
    const mjvGeom& geom = scene_.geoms[index];
    if (geom.segid < 0 || geom.segid >= scene_.ngeom || geom.objtype != mjOBJ_GEOM) continue;
    geom_of_segid_[static_cast<std::size_t>(geom.segid) + 1] = geom.objid;
  }
  const std::size_t width = static_cast<std::size_t>(settings_.width);
  const std::size_t height = static_cast<std::size_t>(settings_.height);
  for (std::size_t row = 0; row < height; ++row) {
    const std::uint8_t* colour = rows_.data() + (height - 1 - row) * width * 3;
    for (std::size_t column = 0; column < width; ++column, colour += 3) {
      const std::size_t segid =
          colour[0] + (static_cast<std::size_t>(colour[1]) << 8U) + (static_cast<std::size_t>(colour[2]) << 16U);
      const std::int32_t geom = segid < geom_of_segid_.size() ? geom_of_segid_[segid] : -1;
      *segmentation++ = geom;
      *body_mask++ = geom >= 0 && model->geom_bodyid[geom] != 0 ? 1 : 0;
    }
  }
}

}  // namespace aime
