// MuJoCo's own renderer on an offscreen OpenGL context: the picture of dm_control, bit for bit.
#pragma once

#include "gl_context.hpp"
#include "renderer.hpp"

#include <vector>

namespace aime {

class GlRenderer final : public Renderer {
 public:
  // `index` picks the GL display.
  GlRenderer(const mjModel* model, const RenderSettings& settings, int index);
  ~GlRenderer() override;

  void render(const mjModel* model, mjData* data, const Picture& picture) override;
  std::string description() const override { return context_->description(); }

 private:
  void draw(std::uint8_t* rows, float* depth = nullptr);
  void decode_depth(const mjModel* model, float* depth) const;
  void decode_segmentation(const mjModel* model, const Picture& picture);

  RenderSettings settings_;
  std::unique_ptr<GlContext> context_;
  mjrContext mjr_;
  mjvScene scene_;
  mjvOption option_;
  mjvCamera camera_;
  std::vector<std::uint8_t> rows_;  // (height, width, 3), first row at the bottom, as OpenGL has it
  std::vector<float> depth_rows_;   // (height, width) on [0, 1], likewise
  std::vector<std::int32_t> geom_of_segid_;
};

}  // namespace aime
