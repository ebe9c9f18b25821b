#include "renderer.hpp"

#include "../raycaster/assets.hpp"
#include "gl_renderer.hpp"
#include "raycast_renderer.hpp"

#include <algorithm>

namespace aime {
namespace {

constexpr int kReducedShadowMap = 512;
// dm_control's choice of scene size; far above what any suite model draws.
constexpr int kMinimumSceneGeoms = 1000;

}  // namespace

int scene_geoms(const mjModel* m) {
  const int frames = std::max({static_cast<int>(m->nbody), static_cast<int>(m->ngeom), static_cast<int>(m->nsite),
                               static_cast<int>(m->ncam), static_cast<int>(m->nlight)});
  const int estimate = static_cast<int>(3 * frames + 4 * m->ngeom + 3 * m->nbody + m->nsite + m->ntendon + m->njnt +
                                        m->nu + m->nskin + m->ncam + m->nlight);
  return std::max(kMinimumSceneGeoms, estimate);
}

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

RenderAssets make_render_assets(const mjModel* model, const RenderSettings& settings) {
  if (settings.height == 0 || settings.renderer != RendererKind::kRaycast) return nullptr;
  return raycaster::make_assets(model);
}

std::unique_ptr<Renderer> make_renderer(const mjModel* model, const RenderSettings& settings,
                                        const RenderAssets& assets, int index) {
  if (settings.renderer == RendererKind::kRaycast) return std::make_unique<RaycastRenderer>(model, settings, assets);
  return std::make_unique<GlRenderer>(model, settings, index);
}

}  // namespace aime
