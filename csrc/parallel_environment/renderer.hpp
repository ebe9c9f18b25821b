// Draws one environment at a time. One renderer per worker thread, made and used on that thread.
//
// Two implementations: MuJoCo's own renderer on an offscreen OpenGL context (gl_renderer.hpp), and a ray caster that
// needs no GL library and never loads one (raycast_renderer.hpp).
#pragma once

#include "mujoco_api.hpp"

#include <cstdint>
#include <memory>
#include <string>

namespace aime {

namespace raycaster {
struct Assets;
}

enum class Quality {
  kExact,  // the model's own settings: the picture of dm_control, bit for bit
  kHigh,   // shadow map of 512 instead of the suite's 2048 texels a side
  kFast,   // that, and one sample a pixel instead of four
};

enum class RendererKind { kGl, kRaycast };

struct RenderSettings {
  int height = 0;  // 0: no pixels
  int width = 0;
  int camera = 0;  // -1: the free camera
  Quality quality = Quality::kExact;
  bool segmentation = false;
  bool depth = false;
  RendererKind renderer = RendererKind::kGl;
  int samples = 4;           // of the ray caster, per pixel
  std::string instructions;  // of the ray caster; empty takes the best that this processor has
};

// Where one picture goes; null pointers are left out.
struct Picture {
  std::uint8_t* pixels = nullptr;        // (height, width, 3) RGB, first row on top
  std::int32_t* segmentation = nullptr;  // (height, width) geom id, -1 where no geom is seen
  std::uint8_t* body_mask = nullptr;     // (height, width) 1 where the geom belongs to a body other than the world
  float* depth = nullptr;                // (height, width) metres along the view direction
};

class Renderer {
 public:
  Renderer() = default;
  virtual ~Renderer() = default;
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;

  virtual void render(const mjModel* model, mjData* data, const Picture& picture) = 0;
  virtual std::string description() const = 0;
};

// What the renderers of all workers share, made once from the model; null where they share nothing. Throws
// std::invalid_argument for a model that the chosen renderer cannot draw.
using RenderAssets = std::shared_ptr<const raycaster::Assets>;
RenderAssets make_render_assets(const mjModel* model, const RenderSettings& settings);

// Changes the visual settings of `model` (a private copy) for renderers of this size and quality.
void apply_render_settings(mjModel* model, const RenderSettings& settings);

// `model` must outlive the renderer and have passed apply_render_settings; `index` is the worker's.
std::unique_ptr<Renderer> make_renderer(const mjModel* model, const RenderSettings& settings,
                                        const RenderAssets& assets, int index);

// An upper bound of the geoms in MuJoCo's abstract scene of `model`.
int scene_geoms(const mjModel* model);

}  // namespace aime
