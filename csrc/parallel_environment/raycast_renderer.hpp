// The ray caster as a renderer: MuJoCo makes its abstract scene (no GL in that), csrc/raycaster draws it.
#pragma once

#include "../raycaster/raycaster.hpp"
#include "renderer.hpp"

namespace aime {

class RaycastRenderer final : public Renderer {
 public:
  RaycastRenderer(const mjModel* model, const RenderSettings& settings, RenderAssets assets);
  ~RaycastRenderer() override;

  void render(const mjModel* model, mjData* data, const Picture& picture) override;
  std::string description() const override;
  std::string instruction_set() const { return raycaster_.instructions(); }

 private:
  RenderSettings settings_;
  raycaster::Raycaster raycaster_;
  mjvScene scene_;
  mjvOption option_;
  mjvCamera camera_;
};

}  // namespace aime
