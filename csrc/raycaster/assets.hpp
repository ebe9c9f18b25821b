// What the ray caster takes from a model once: textures with their mipmaps, and the visual settings.
#pragma once

#include <mujoco/mujoco.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace aime::raycaster {

constexpr int kMaxLevels = 16;
constexpr int kCubeFaces = 6;

// RGBA texels (8 bits each, red lowest) of all mipmap levels, one after the other. A cube level holds its six faces in
// OpenGL's order: +x -x +y -y +z -z.
struct Texture {
  bool cube = false;
  int levels = 0;
  std::array<std::int32_t, kMaxLevels> offset{};  // of the level's first texel
  std::array<std::int32_t, kMaxLevels> width{};
  std::array<std::int32_t, kMaxLevels> height{};
  std::vector<std::uint32_t> texels;
};

struct Assets {
  std::vector<Texture> textures;  // by MuJoCo's texture id
  int skybox = -1;                // texture id; -1: black background
  float haze = 0.0F;              // radius of the haze, as a part of the sky's
  std::array<float, 3> haze_colour{};
  float shadow_clip = 0.0F;   // half side of a directional light's shadow map, metres
  float shadow_scale = 0.0F;  // part of a spot light's cutoff that its shadow map covers
};

// Throws std::invalid_argument for a model with something visible that the ray caster cannot draw (a mesh, a height
// field, a skin, a flex); the message names it, its type, and the renderer that can.
std::shared_ptr<const Assets> make_assets(const mjModel* model);

}  // namespace aime::raycaster
