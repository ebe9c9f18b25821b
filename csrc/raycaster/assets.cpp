#include "assets.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace aime::raycaster {
namespace {

constexpr int kChannels = 4;

const char* type_name(int type) {
  switch (type) {
    case mjGEOM_HFIELD:
      return "hfield";
    case mjGEOM_MESH:
      return "mesh";
    case mjGEOM_SDF:
      return "sdf";
    default:
      return nullptr;
  }
}

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("renderer=\"raycast\" cannot draw " + what + ": use renderer=\"gl\" for this model");
}

// MuJoCo's default options show the first three groups.
bool shown(int group) {
  constexpr int kShownGroups = 3;
  return std::clamp(group, 0, mjNGROUP - 1) < kShownGroups;
}

float alpha_of(const mjModel* m, int material, const float* rgba) {
  const bool own = rgba[0] != 0.5F || rgba[1] != 0.5F || rgba[2] != 0.5F || rgba[3] != 1.0F;
  return own || material < 0 ? rgba[3] : m->mat_rgba[4 * material + 3];
}

void check(const mjModel* m) {
  for (int geom = 0; geom < m->ngeom; ++geom) {
    const char* type = type_name(m->geom_type[geom]);
    if (type == nullptr || !shown(m->geom_group[geom])) continue;
    if (alpha_of(m, m->geom_matid[geom], m->geom_rgba + 4 * geom) == 0.0F) continue;
    const std::string name = m->names + m->name_geomadr[geom];
    refuse("geom " + std::to_string(geom) + (name.empty() ? "" : " '" + name + "'") + " of type " + type);
  }
  if (m->nskin > 0) refuse("skin '" + std::string(m->names + m->name_skinadr[0]) + "'");
  if (m->nflex > 0) refuse("flex '" + std::string(m->names + m->name_flexadr[0]) + "'");
}

// One image of a level from the one above, as OpenGL's generator makes it: each texel is the bilinear sample at its
// centre, which for even sizes is the mean of four.
void reduce(const std::uint32_t* from, int from_width, int from_height, std::uint32_t* to, int to_width,
            int to_height) {
  const auto axis = [](int index, int from_size, int to_size, int& low, int& high, float& weight) {
    const float at =
        (static_cast<float>(index) + 0.5F) * static_cast<float>(from_size) / static_cast<float>(to_size) - 0.5F;
    const float base = std::floor(at);
    weight = at - base;
    low = std::clamp(static_cast<int>(base), 0, from_size - 1);
    high = std::clamp(static_cast<int>(base) + 1, 0, from_size - 1);
  };
  for (int y = 0; y < to_height; ++y) {
    int y0 = 0, y1 = 0;
    float wy = 0.0F;
    axis(y, from_height, to_height, y0, y1, wy);
    for (int x = 0; x < to_width; ++x) {
      int x0 = 0, x1 = 0;
      float wx = 0.0F;
      axis(x, from_width, to_width, x0, x1, wx);
      const std::uint32_t corners[4] = {from[y0 * from_width + x0], from[y0 * from_width + x1],
                                        from[y1 * from_width + x0], from[y1 * from_width + x1]};
      std::uint32_t texel = 0;
      for (int channel = 0; channel < kChannels; ++channel) {
        const auto part = [&](int corner) { return static_cast<float>((corners[corner] >> (8 * channel)) & 0xFFU); };
        const float top = part(0) + wx * (part(1) - part(0));
        const float bottom = part(2) + wx * (part(3) - part(2));
        texel |= static_cast<std::uint32_t>(top + wy * (bottom - top) + 0.5F) << (8 * channel);
      }
      to[y * to_width + x] = texel;
    }
  }
}

Texture make_texture(const mjModel* m, int id) {
  const int channels = m->tex_nchannel[id];
  Texture texture;
  texture.cube = m->tex_type[id] != mjTEXTURE_2D;
  const int width = m->tex_width[id];
  // A cube map comes as six faces below each other, or as one face that all six repeat.
  const int height = texture.cube ? width : m->tex_height[id];
  const bool repeated = texture.cube && m->tex_height[id] == width;
  const int faces = texture.cube ? kCubeFaces : 1;
  if ((channels != 3 && channels != 4) || (texture.cube && channels == 4) || width < 1 || height < 1) {
    refuse("texture " + std::to_string(id) + " with " + std::to_string(channels) + " channels");
  }
  if (m->tex_colorspace[id] == mjCOLORSPACE_SRGB) refuse("texture " + std::to_string(id) + " in the sRGB colour space");
  const mjtByte* bytes = m->tex_data + m->tex_adr[id];
  int level_width = width;
  int level_height = height;
  std::int32_t total = 0;
  while (texture.levels < kMaxLevels) {
    const auto level = static_cast<std::size_t>(texture.levels++);
    texture.offset[level] = total;
    texture.width[level] = level_width;
    texture.height[level] = level_height;
    total += faces * level_width * level_height;
    if (level_width == 1 && level_height == 1) break;
    level_width = std::max(1, level_width / 2);
    level_height = std::max(1, level_height / 2);
  }
  texture.texels.resize(static_cast<std::size_t>(total));
  const int area = width * height;
  for (int face = 0; face < faces; ++face) {
    const mjtByte* source = bytes + (repeated ? 0 : static_cast<std::ptrdiff_t>(face) * area * channels);
    for (int index = 0; index < area; ++index) {
      std::uint32_t texel = 0xFF000000U;
      for (int channel = 0; channel < channels; ++channel) {
        const auto value = static_cast<std::uint32_t>(source[index * channels + channel]);
        texel = (texel & ~(0xFFU << (8 * channel))) | (value << (8 * channel));
      }
      texture.texels[static_cast<std::size_t>(face * area + index)] = texel;
    }
    for (std::size_t level = 1; level < static_cast<std::size_t>(texture.levels); ++level) {
      const int from_area = texture.width[level - 1] * texture.height[level - 1];
      const int to_area = texture.width[level] * texture.height[level];
      reduce(texture.texels.data() + texture.offset[level - 1] + face * from_area, texture.width[level - 1],
             texture.height[level - 1], texture.texels.data() + texture.offset[level] + face * to_area,
             texture.width[level], texture.height[level]);
    }
  }
  return texture;
}

}  // namespace

std::shared_ptr<const Assets> make_assets(const mjModel* model) {
  check(model);
  auto assets = std::make_shared<Assets>();
  for (int id = 0; id < model->ntex; ++id) {
    assets->textures.push_back(make_texture(model, id));
    if (assets->skybox < 0 && model->tex_type[id] == mjTEXTURE_SKYBOX) assets->skybox = id;
  }
  const auto extent = static_cast<float>(model->stat.extent);
  assets->haze = model->vis.map.haze;
  for (std::size_t channel = 0; channel < 3; ++channel) {
    assets->haze_colour[channel] = model->vis.rgba.haze[channel];
  }
  assets->shadow_clip = extent * model->vis.map.shadowclip;
  assets->shadow_scale = model->vis.map.shadowscale;
  return assets;
}

}  // namespace aime::raycaster
