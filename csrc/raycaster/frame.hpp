// One frame's scene, ready for the kernels: everything relative to the camera, in single precision.
#pragma once

#include "assets.hpp"

#include <cstdint>
#include <vector>

namespace aime::raycaster {

constexpr int kMaxSamples = 8;

enum class Form : std::int32_t { kPlane, kBall, kCapsule, kCylinder, kBox };

enum class Mapping : std::int32_t {
  kNone,
  kSurface,  // 2d texture over the coordinates that each form's surface has
  kCube,     // cube map, looked up in the direction of the object's own coordinates
};

// Rays of a camera: origin + t (forward + x right + y up), x and y on the image plane at distance 1, so that t is the
// depth. Here in the unit coordinates of one solid, where a ball is the unit ball and a box the cube [-1, 1]^3.
struct View {
  float origin[3];
  float forward[3];
  float right[3];
  float up[3];
};

// The lines of a plane's grid along one side: first + k step between `low` and `high`, the outermost cells narrower.
struct Grid {
  float low, first, step, last, high;
};

struct Solid {
  Form form;
  float axes[3][3];   // world to unit coordinates: unit = axes (world - position); normals go back by the transpose
  float position[3];  // relative to the camera
  float half_length;  // of a capsule's cylinder, in radii
  float bound[2];     // half sides of a plane; infinite where it has no end
  Grid grid[2];       // of a plane: the renderer lights its corners only
  float radius;       // of the bounding ball around `position`; infinite for an infinite plane
  View view;          // the camera
  View mirror;        // the camera reflected in the frame's mirror
  // Pixels that may see the solid: left, top, right, bottom (the last two excluded), and the same for its reflection.
  int seen[4];
  int reflected[4];
  float rgba[4];
  float emission;
  float specular;
  float exponent;  // of the specular lobe
  int texture;
  Mapping mapping;
  float texture_scale[2];
  float texture_offset[2];
  float cube_scale[3];
  bool casts;  // shadows
  bool transparent;
  int segment;  // geom id, -1 for anything else, -2 if it is not drawn in a segmentation
};

struct Light {
  bool directional;
  bool casts;
  float ambient[3];
  float diffuse[3];
  float specular[3];
  float position[3];  // relative to the camera
  float direction[3];
  float cutoff;  // its cosine
  bool cone;     // false: shines to all sides
  float exponent;
  float attenuation[3];
  // The shadow map's frame; what lies outside it is lit.
  float right[3];
  float up[3];
  float extent;  // half side: metres for a directional light, tangent for a spot
  float near;
};

struct Frame {
  int width = 0;
  int height = 0;
  int samples = 1;
  float sample_x[kMaxSamples];  // inside the pixel, from its left and top
  float sample_y[kMaxSamples];
  // Image plane position of a pixel: x = column * x_step + x_start, y = row * y_step + y_start.
  float x_step, x_start, y_step, y_start;
  View camera;         // in the world's axes, origin 0
  View mirror_camera;  // reflected in the mirror
  float near;
  float far;

  std::vector<Solid> solids;  // capacity is fixed at construction
  std::vector<int> opaque;
  std::vector<int> transparent;  // nearest first
  int mirror = -1;               // the one reflecting solid
  float reflectance = 0.0F;

  Light lights[mjMAXLIGHT];
  int light_count = 0;

  const Assets* assets = nullptr;
  float sky_distance = 0.0F;  // radius and half height of the sky's cylinder; 0: no sky
  bool haze = false;
  float haze_axes[3][3];  // of the plane it lies over
  float haze_elevation = 0.0F;
};

// Where the results go; null pointers are left out. First row on top.
struct Output {
  std::uint8_t* rgb;
  std::int32_t* segmentation;
  float* depth;
};

}  // namespace aime::raycaster
