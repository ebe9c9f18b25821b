// Draws one environment at a time with MuJoCo's own renderer. One per worker thread, made and used on that thread.
#pragma once

#include "gl_context.hpp"
#include "mujoco_api.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace aime {

enum class Quality {
  kExact,  // the model's own settings: the picture of dm_control, bit for bit
  kHigh,   // shadow map of 512 instead of the suite's 2048 texels a side
  kFast,   // that, and one sample a pixel instead of four
};

struct RenderSettings {
  int height = 0;  // 0: no pixels
  int width = 0;
  int camera = 0;  // -1: the free camera
  Quality quality = Quality::kExact;
  bool segmentation = false;
};

// Changes the visual settings of `model` (a private copy) for contexts of this size and quality.
void apply_render_settings(mjModel* model, const RenderSettings& settings);

class Renderer {
 public:
  // `model` must outlive the renderer and have passed apply_render_settings; `index` picks the GL display.
  Renderer(const mjModel* model, const RenderSettings& settings, int index);
  ~Renderer();
  Renderer(const Renderer&) = delete;
  Renderer& operator=(const Renderer&) = delete;

  // Writes (height, width, 3) RGB, first row on top. With segmentation also the geom id of each pixel (height, width),
  // -1 where no geom is seen, and the body mask: 1 where the geom belongs to a body other than the world.
  void render(const mjModel* model, mjData* data, std::uint8_t* pixels, std::int32_t* segmentation,
              std::uint8_t* body_mask);

  std::string description() const { return context_->description(); }

 private:
  void draw(std::uint8_t* rows);
  void decode_segmentation(const mjModel* model, std::int32_t* segmentation, std::uint8_t* body_mask);

  RenderSettings settings_;
  std::unique_ptr<GlContext> context_;
  mjrContext mjr_;
  mjvScene scene_;
  mjvOption option_;
  mjvCamera camera_;
  std::vector<std::uint8_t> rows_;  // (height, width, 3), first row at the bottom, as OpenGL has it
  std::vector<std::int32_t> geom_of_segid_;
};

}  // namespace aime
