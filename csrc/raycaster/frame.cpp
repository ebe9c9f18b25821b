#include "frame.hpp"

#include "raycaster.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace aime::raycaster {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// The renderer's limits: alpha below which a geom is blended, the sky's part of zfar, shininess of 1 as an exponent.
constexpr float kOpaqueAlpha = 0.995F;
constexpr float kSkyPart = 0.70F;
constexpr float kShininess = 128.0F;
constexpr float kBehindAlpha = 0.3F;
constexpr float kDarkAmbient = 0.3F;  // where no light is on at all
constexpr float kWidestShadow = 160.0F;
constexpr float kDegree = 3.14159265358979F / 180.0F;

float dot(const float* a, const float* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

void cross(const float* a, const float* b, float* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

void normalise(float* v) {
  const float length = std::sqrt(dot(v, v));
  for (int k = 0; k < 3; ++k) v[k] = length > 0.0F ? v[k] / length : (k == 2 ? 1.0F : 0.0F);
}

// v - 2 ((v - point).normal) normal; a null point reflects a direction.
void reflect(const float* v, const float* point, const float* normal, float* out) {
  const float distance = dot(v, normal) - (point != nullptr ? dot(point, normal) : 0.0F);
  for (int k = 0; k < 3; ++k) out[k] = v[k] - 2.0F * distance * normal[k];
}

View into(const Solid& solid, const View& world) {
  View view;
  const float offset[3] = {world.origin[0] - solid.position[0], world.origin[1] - solid.position[1],
                           world.origin[2] - solid.position[2]};
  for (int k = 0; k < 3; ++k) {
    view.origin[k] = dot(solid.axes[k], offset);
    view.forward[k] = dot(solid.axes[k], world.forward);
    view.right[k] = dot(solid.axes[k], world.right);
    view.up[k] = dot(solid.axes[k], world.up);
  }
  return view;
}

View reflect(const View& view, const float* point, const float* normal) {
  View out;
  reflect(view.origin, point, normal, out.origin);
  reflect(view.forward, nullptr, normal, out.forward);
  reflect(view.right, nullptr, normal, out.right);
  reflect(view.up, nullptr, normal, out.up);
  return out;
}

// The pixels that a solid's outline may touch, gathered point by point or ball by ball.
class Outline {
 public:
  explicit Outline(const Frame& frame) : frame_(frame) {}

  void add_point(const float* point) { add_ball(point, 0.0F); }

  void add_ball(const float* centre, float radius) {
    const View& camera = frame_.camera;
    const float depth = dot(centre, camera.forward);
    if (depth <= radius + frame_.near) {
      everything_ = true;
      return;
    }
    extend(dot(centre, camera.right), depth, radius, low_x_, high_x_);
    extend(dot(centre, camera.up), depth, radius, low_y_, high_y_);
  }

  void add_all() { everything_ = true; }

  void store(int (&pixels)[4]) const {
    const auto column = [&](float x) { return (x - frame_.x_start) / frame_.x_step; };
    const auto row = [&](float y) { return (y - frame_.y_start) / frame_.y_step; };
    if (everything_) {
      pixels[0] = pixels[1] = 0;
      pixels[2] = frame_.width;
      pixels[3] = frame_.height;
      return;
    }
    pixels[0] = within(column(low_x_) - kMargin, frame_.width);
    pixels[1] = within(row(high_y_) - kMargin, frame_.height);
    pixels[2] = within(column(high_x_) + kMargin + 1.0F, frame_.width);
    pixels[3] = within(row(low_y_) + kMargin + 1.0F, frame_.height);
  }

 private:
  static constexpr float kMargin = 0.02F;  // pixels; rounding is far below

  static int within(float value, int size) {
    return static_cast<int>(std::clamp(std::floor(value), 0.0F, static_cast<float>(size)));
  }

  // The two tangents from the eye to a circle in the plane of one image axis and the view direction.
  static void extend(float across, float depth, float radius, float& low, float& high) {
    const float square = std::sqrt(std::max(0.0F, across * across + depth * depth - radius * radius));
    const float scale = 1.0F / (depth * depth - radius * radius);
    low = std::min(low, (across * depth - radius * square) * scale);
    high = std::max(high, (across * depth + radius * square) * scale);
  }

  const Frame& frame_;
  bool everything_ = false;
  float low_x_ = kInfinity, high_x_ = -kInfinity, low_y_ = kInfinity, high_y_ = -kInfinity;
};

// `mirror_point` null: the solid itself; else its reflection.
void find_pixels(const Frame& frame, const mjvGeom& geom, const Solid& solid, const float* mirror_point,
                 const float* mirror_normal, int (&pixels)[4]) {
  Outline outline(frame);
  const auto place = [&](float a, float b, float c, float* out) {
    float point[3];
    for (int k = 0; k < 3; ++k) {
      point[k] = solid.position[k] + a * geom.mat[3 * k] + b * geom.mat[3 * k + 1] + c * geom.mat[3 * k + 2];
    }
    if (mirror_point != nullptr) {
      reflect(point, mirror_point, mirror_normal, out);
    } else {
      std::copy_n(point, 3, out);
    }
  };
  float point[3];
  const float* size = geom.size;
  switch (solid.form) {
    case Form::kPlane:
      if (solid.bound[0] == kInfinity || solid.bound[1] == kInfinity) {
        outline.add_all();
        break;
      }
      for (int corner = 0; corner < 4; ++corner) {
        place((corner & 1) != 0 ? size[0] : -size[0], (corner & 2) != 0 ? size[1] : -size[1], 0.0F, point);
        outline.add_point(point);
      }
      break;
    case Form::kCapsule:
    case Form::kCylinder:
      for (const float end : {-size[2], size[2]}) {
        place(0.0F, 0.0F, end, point);
        outline.add_ball(point, size[0]);
      }
      break;
    case Form::kBall:
      if (size[0] == size[1] && size[1] == size[2]) {
        place(0.0F, 0.0F, 0.0F, point);
        outline.add_ball(point, size[0]);
        break;
      }
      [[fallthrough]];
    case Form::kBox:
      for (int corner = 0; corner < 8; ++corner) {
        place((corner & 1) != 0 ? size[0] : -size[0], (corner & 2) != 0 ? size[1] : -size[1],
              (corner & 4) != 0 ? size[2] : -size[2], point);
        outline.add_point(point);
      }
      break;
  }
  outline.store(pixels);
}

void set_form(const mjvGeom& geom, Solid& solid) {
  float scale[3] = {geom.size[0], geom.size[1], geom.size[2]};
  solid.half_length = 0.0F;
  solid.bound[0] = solid.bound[1] = 1.0F;
  switch (geom.type) {
    case mjGEOM_PLANE:
      solid.form = Form::kPlane;
      for (int k = 0; k < 2; ++k) solid.bound[k] = geom.size[k] > 0.0F ? geom.size[k] : kInfinity;
      scale[0] = scale[1] = scale[2] = 1.0F;
      solid.radius = std::sqrt(solid.bound[0] * solid.bound[0] + solid.bound[1] * solid.bound[1]);
      break;
    case mjGEOM_SPHERE:
    case mjGEOM_ELLIPSOID:
      solid.form = Form::kBall;
      solid.radius = std::max({scale[0], scale[1], scale[2]});
      break;
    case mjGEOM_CAPSULE:
      solid.form = Form::kCapsule;
      solid.half_length = geom.size[2] / geom.size[0];
      scale[2] = geom.size[0];
      solid.radius = geom.size[0] + geom.size[2];
      break;
    case mjGEOM_CYLINDER:
      solid.form = Form::kCylinder;
      solid.radius = std::sqrt(geom.size[0] * geom.size[0] + geom.size[2] * geom.size[2]);
      break;
    case mjGEOM_BOX:
      solid.form = Form::kBox;
      solid.radius = std::sqrt(dot(geom.size, geom.size));
      break;
    default:
      throw std::runtime_error("the scene holds an object of type " + std::to_string(geom.type) +
                               ", which renderer=\"raycast\" cannot draw: use renderer=\"gl\"");
  }
  for (int k = 0; k < 3; ++k) {
    for (int world = 0; world < 3; ++world) solid.axes[k][world] = geom.mat[3 * world + k] / scale[k];
  }
}

// How MuJoCo divides a plane into quads, which it lights at their corners.
void set_grid(const mjvGeom& geom, float far, Solid& solid) {
  constexpr float kCells = 200.0F;  // mjMAXPLANEGRID
  for (int k = 0; k < 2; ++k) {
    const float size = geom.size[k];
    if (size > 0.0F) {
      const float half_step = std::max(geom.size[2], size / (kCells - 2.0F));
      const auto count = static_cast<float>(static_cast<int>(size / half_step) / 2 * 2);
      const float inner = count * half_step;
      solid.grid[k] = {-size, -inner, 2.0F * half_step, inner, size};
    } else {
      const bool textured = geom.matid >= 0 && geom.texrepeat[k] > 0.0F;
      const float period = textured ? 2.0F / geom.texrepeat[k] : 2.1F * far / (kCells - 2.0F);
      solid.grid[k] = {-kInfinity, 0.0F, (2.1F * far + 2.0F * period) / kCells, kInfinity, kInfinity};
    }
  }
}

void set_texture(const mjvGeom& geom, const Assets& assets, Solid& solid) {
  solid.mapping = Mapping::kNone;
  solid.texture = -1;
  if (geom.matid < 0 || geom.texid < 0) return;
  solid.texture = geom.texid;
  const bool cube = assets.textures[static_cast<std::size_t>(geom.texid)].cube;
  solid.mapping = cube ? Mapping::kCube : Mapping::kSurface;
  for (int k = 0; k < 3; ++k) solid.cube_scale[k] = geom.texuniform != 0 ? geom.size[k] : 1.0F;
  const bool infinite = geom.type == mjGEOM_PLANE && (geom.size[0] <= 0.0F || geom.size[1] <= 0.0F);
  for (int k = 0; k < 2; ++k) {
    float scale = geom.texrepeat[k] > 0.0F ? geom.texrepeat[k] : 1.0F;
    if (geom.texuniform != 0 && geom.size[k] > 0.0F) scale *= geom.size[k];
    solid.texture_scale[k] = scale;
    solid.texture_offset[k] = 0.0F;
    if (geom.type != mjGEOM_PLANE) continue;
    // A plane's coordinates are x and -y: 0 to 1 over a finite side, 1 in two metres on an infinite one.
    const float sign = k == 0 ? 1.0F : -1.0F;
    solid.texture_scale[k] = sign * scale * 0.5F / (geom.size[k] > 0.0F ? geom.size[k] : 1.0F);
    solid.texture_offset[k] = (geom.size[k] > 0.0F ? 0.5F * scale : 0.0F) - (infinite ? 0.5F : 0.0F);
  }
}

void set_camera(const mjvScene& scene, Frame& frame, float* eye) {
  const mjvGLCamera& left = scene.camera[0];
  const mjvGLCamera& right = scene.camera[1];
  if (left.orthographic != 0) {
    throw std::runtime_error("renderer=\"raycast\" has no orthographic camera: use renderer=\"gl\"");
  }
  View& camera = frame.camera;
  float up[3];
  for (int k = 0; k < 3; ++k) {
    eye[k] = 0.5F * (left.pos[k] + right.pos[k]);
    camera.origin[k] = 0.0F;
    camera.forward[k] = left.forward[k] + right.forward[k];
    up[k] = left.up[k] + right.up[k];
  }
  normalise(camera.forward);
  cross(camera.forward, up, camera.right);
  normalise(camera.right);
  cross(camera.right, camera.forward, camera.up);
  normalise(camera.up);
  const auto width = static_cast<float>(frame.width);
  const auto height = static_cast<float>(frame.height);
  const float near = left.frustum_near;
  const float half_width = left.frustum_width != 0.0F
                               ? left.frustum_width
                               : 0.5F * width / height * (left.frustum_top - left.frustum_bottom);
  frame.x_step = 2.0F * half_width / near / width;
  frame.x_start = (left.frustum_center - half_width) / near;
  frame.y_step = (left.frustum_bottom - left.frustum_top) / near / height;
  frame.y_start = left.frustum_top / near;
  frame.near = near;
  frame.far = left.frustum_far;
}

// What MuJoCo's geom looks like; false for one that is not drawn.
bool set_solid(const mjvGeom& geom, const Frame& frame, const float* eye, Solid& solid) {
  if (geom.type == mjGEOM_NONE) return false;
  set_form(geom, solid);
  if (solid.form == Form::kPlane) set_grid(geom, frame.far, solid);
  for (int k = 0; k < 3; ++k) solid.position[k] = geom.pos[k] - eye[k];
  solid.view = into(solid, frame.camera);
  set_texture(geom, *frame.assets, solid);
  std::copy_n(geom.rgba, 4, solid.rgba);
  const bool behind = geom.type == mjGEOM_PLANE && solid.view.origin[2] < 0.0F;
  solid.transparent = geom.rgba[3] < kOpaqueAlpha || behind;
  if (behind) solid.rgba[3] *= kBehindAlpha;
  solid.emission = geom.emission;
  solid.specular = geom.specular;
  solid.exponent = geom.shininess * kShininess;
  solid.casts = geom.category != mjCAT_DECOR;
  solid.segment = geom.segid < 0 ? -2 : geom.objtype == mjOBJ_GEOM ? geom.objid : -1;
  find_pixels(frame, geom, solid, nullptr, nullptr, solid.seen);
  return true;
}

// MuJoCo lets one plane or box reflect: the first. A box does so on its upper side.
void set_mirror(const mjvScene& scene, Frame& frame, const std::vector<int>& geom_of_solid) {
  frame.mirror = -1;
  if (scene.flags[mjRND_REFLECTION] == 0) return;
  for (const int index : frame.opaque) {
    const auto place = static_cast<std::size_t>(index);
    Solid& solid = frame.solids[place];
    const mjvGeom& geom = scene.geoms[geom_of_solid[place]];
    if ((solid.form != Form::kPlane && solid.form != Form::kBox) || geom.reflectance <= 0.0F) continue;
    const float normal[3] = {geom.mat[2], geom.mat[5], geom.mat[8]};
    float point[3];
    const float rise = solid.form == Form::kBox ? geom.size[2] : 0.0F;
    for (int k = 0; k < 3; ++k) point[k] = solid.position[k] + rise * normal[k];
    if (-dot(point, normal) < 0.0F) return;  // seen from behind
    frame.mirror = index;
    frame.reflectance = geom.reflectance;
    frame.mirror_camera = reflect(frame.camera, point, normal);
    for (std::size_t other = 0; other < frame.solids.size(); ++other) {
      Solid& reflected = frame.solids[other];
      reflected.mirror = into(reflected, frame.mirror_camera);
      find_pixels(frame, scene.geoms[geom_of_solid[other]], reflected, point, normal, reflected.reflected);
    }
    return;
  }
}

void set_light(const mjvLight& from, const float* eye, const Assets& assets, bool shadows, float near, Light& light) {
  light.directional = from.type == mjLIGHT_DIRECTIONAL;
  light.casts = from.castshadow != 0 && shadows;
  for (int k = 0; k < 3; ++k) {
    light.ambient[k] = from.ambient[k];
    light.diffuse[k] = from.diffuse[k];
    light.specular[k] = from.specular[k];
    light.position[k] = from.pos[k] - eye[k];
    light.direction[k] = from.dir[k];
    light.attenuation[k] = from.attenuation[k];
  }
  normalise(light.direction);
  light.cone = !light.directional && from.cutoff < 180.0F;
  light.cutoff = std::cos(from.cutoff * kDegree);
  light.exponent = from.exponent;
  light.near = near;
  // Any vector across the direction, chosen as MuJoCo chooses the shadow map's upward one.
  const float minus_x[3] = {-1.0F, 0.0F, 0.0F};
  const float plus_y[3] = {0.0F, 1.0F, 0.0F};
  float up[3];
  cross(light.direction, minus_x, up);
  if (dot(up, up) <= 0.01F) cross(light.direction, plus_y, up);
  normalise(up);
  cross(light.direction, up, light.right);
  normalise(light.right);
  cross(light.right, light.direction, light.up);
  if (light.directional) {
    light.extent = assets.shadow_clip;
  } else {
    light.extent = std::tan(0.5F * kDegree * std::min(2.0F * from.cutoff * assets.shadow_scale, kWidestShadow));
  }
}

void set_lights(const mjvScene& scene, const float* eye, Frame& frame) {
  const bool shadows = scene.flags[mjRND_SHADOW] != 0 && frame.assets->shadow_scale > 0.0F;
  frame.light_count = 0;
  for (int index = 0; index < std::min(scene.nlight, static_cast<int>(mjMAXLIGHT)); ++index) {
    const mjvLight& from = scene.lights[index];
    if (from.type != mjLIGHT_DIRECTIONAL && from.type != mjLIGHT_SPOT) continue;
    set_light(from, eye, *frame.assets, shadows, frame.near, frame.lights[frame.light_count++]);
  }
  if (frame.light_count != 0) return;
  mjvLight ambient{};
  ambient.type = mjLIGHT_DIRECTIONAL;
  for (float& channel : ambient.ambient) channel = kDarkAmbient;
  set_light(ambient, eye, *frame.assets, false, frame.near, frame.lights[frame.light_count++]);
}

void set_sky(const mjvScene& scene, const float* eye, Frame& frame) {
  const bool sky = scene.flags[mjRND_SKYBOX] != 0 && frame.assets->skybox >= 0;
  frame.sky_distance = sky ? kSkyPart * frame.far : 0.0F;
  frame.haze = false;
  if (!sky || scene.flags[mjRND_HAZE] == 0) return;
  for (int index = 0; index < scene.ngeom; ++index) {
    const mjvGeom& geom = scene.geoms[index];
    if (geom.type != mjGEOM_PLANE || geom.size[0] != 0.0F || geom.size[1] != 0.0F) continue;
    float height = 0.0F;
    for (int k = 0; k < 3; ++k) {
      height += (eye[k] - geom.pos[k]) * geom.mat[3 * k + 2];
      for (int world = 0; world < 3; ++world) frame.haze_axes[k][world] = geom.mat[3 * world + k];
    }
    frame.haze_elevation = height / frame.sky_distance;
    frame.haze = frame.haze_elevation > 0.0F;
    return;
  }
}

}  // namespace

void make_frame(const mjvScene& scene, Frame& frame, std::vector<int>& geom_of_solid) {
  float eye[3];
  set_camera(scene, frame, eye);
  frame.solids.clear();
  frame.opaque.clear();
  frame.transparent.clear();
  geom_of_solid.clear();
  if (static_cast<std::size_t>(scene.ngeom) > frame.solids.capacity()) {
    throw std::runtime_error("the scene holds " + std::to_string(scene.ngeom) + " objects, expected at most " +
                             std::to_string(frame.solids.capacity()));
  }
  for (int index = 0; index < scene.ngeom; ++index) {
    Solid solid;
    if (!set_solid(scene.geoms[index], frame, eye, solid)) continue;
    const auto place = static_cast<int>(frame.solids.size());
    (solid.transparent ? frame.transparent : frame.opaque).push_back(place);
    frame.solids.push_back(solid);
    geom_of_solid.push_back(index);
  }
  const auto distance = [&](int index) {
    const Solid& solid = frame.solids[static_cast<std::size_t>(index)];
    if (solid.form == Form::kPlane) return kInfinity;
    return std::sqrt(dot(solid.position, solid.position)) - solid.radius;
  };
  std::sort(frame.transparent.begin(), frame.transparent.end(), [&](int a, int b) {
    const float left = distance(a);
    const float right = distance(b);
    return left != right ? left < right : a < b;
  });
  set_mirror(scene, frame, geom_of_solid);
  set_lights(scene, eye, frame);
  set_sky(scene, eye, frame);
}

}  // namespace aime::raycaster
