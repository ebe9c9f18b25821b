#include "renderer.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>

namespace aime {
namespace {

constexpr int kReducedShadowMap = 512;
// dm_control's choice of scene size; far above what any suite model draws.
constexpr int kMinimumSceneGeoms = 1000;

int scene_geoms(const mjModel* m) {
  const int frames = std::max({static_cast<int>(m->nbody), static_cast<int>(m->ngeom), static_cast<int>(m->nsite),
                               static_cast<int>(m->ncam), static_cast<int>(m->nlight)});
  const int estimate = static_cast<int>(3 * frames + 4 * m->ngeom + 3 * m->nbody + m->nsite + m->ntendon + m->njnt +
                                        m->nu + m->nskin + m->ncam + m->nlight);
  return std::max(kMinimumSceneGeoms, estimate);
}

}  // namespace

void apply_render_settings(mjModel* model, const RenderSettings& settings) {
  if (settings.height == 0) return;
  // The offscreen buffer is as large as the picture: less to clear and to resolve, and no upper limit of size.
  model->vis.global.offheight = settings.height;
  model->vis.global.offwidth = settings.width;
  if (settings.quality != Quality::kExact) {
    model->vis.quality.shadowsize = std::min(static_cast<int>(model->vis.quality.shadowsize), kReducedShadowMap);
  }
  if (settings.quality == Quality::kFast) model->vis.quality.offsamples = 0;
}

Renderer::Renderer(const mjModel* model, const RenderSettings& settings, int index) : settings_(settings) {
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
  rows_.resize(static_cast<std::size_t>(settings.height) * static_cast<std::size_t>(settings.width) * 3);
}

Renderer::~Renderer() {
  const MujocoApi& mj = mujoco();
  const std::lock_guard<std::mutex> lock(gl_mutex());
  mj.mjv_freeScene(&scene_);
  mj.mjr_freeContext(&mjr_);
  context_->release();
}

void Renderer::draw(std::uint8_t* rows) {
  const MujocoApi& mj = mujoco();
  const mjrRect view{0, 0, settings_.width, settings_.height};
  mj.mjr_render(view, &scene_, &mjr_);
  mj.mjr_readPixels(rows, nullptr, view, &mjr_);
}

void Renderer::render(const mjModel* model, mjData* data, std::uint8_t* pixels, std::int32_t* segmentation,
                      std::uint8_t* body_mask) {
  const std::size_t stride = static_cast<std::size_t>(settings_.width) * 3;
  const std::size_t height = static_cast<std::size_t>(settings_.height);
  guarded_or_throw(
      [&] {
        mujoco().mjv_updateScene(model, data, &option_, nullptr, &camera_, mjCAT_ALL, &scene_);
        draw(rows_.data());
      },
      "rendering failed");
  for (std::size_t row = 0; row < height; ++row) {
    std::memcpy(pixels + row * stride, rows_.data() + (height - 1 - row) * stride, stride);
  }
  if (!settings_.segmentation) return;
  scene_.flags[mjRND_SEGMENT] = 1;
  scene_.flags[mjRND_IDCOLOR] = 1;
  guarded_or_throw([&] { draw(rows_.data()); }, "rendering of the segmentation failed");
  scene_.flags[mjRND_SEGMENT] = 0;
  scene_.flags[mjRND_IDCOLOR] = 0;
  decode_segmentation(model, segmentation, body_mask);
}

void Renderer::decode_segmentation(const mjModel* model, std::int32_t* segmentation, std::uint8_t* body_mask) {
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
