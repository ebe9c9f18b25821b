// The colour of a surface point: OpenGL's fixed light model, with one ray per light for the shadows.

// The surface seen through a pixel.
struct Surface {
  Vector point;   // in the world's axes
  Vector unit;    // in the solid's unit coordinates
  Vector normal;  // of length 1
  Vector ray;     // from the eye, not normalised
};

// One light's share, before it meets the texture. `towards` is the direction to the eye.
struct Contribution {
  Float diffuse;  // factors of the light's colours
  Float specular;
  Float strength;  // attenuation and cone
  Vector to_light;
  Mask facing;
};

AIME_INLINE Contribution light_surface(const Light& light, const Solid& solid, const Surface& at, Vector towards) {
  Contribution out;
  if (light.directional) {
    const float back[3] = {-light.direction[0], -light.direction[1], -light.direction[2]};
    out.to_light = all(back);
    out.strength = all(1.0F);
  } else {
    const Vector offset = all(light.position) - at.point;
    const Float distance = root(dot(offset, offset));
    out.to_light = offset * (1.0F / maximum(distance, all(1e-20F)));
    out.strength = 1.0F / (light.attenuation[0] + distance * (light.attenuation[1] + distance * light.attenuation[2]));
    if (light.cone) {
      const Float along = -dot(out.to_light, all(light.direction));
      out.strength = select(along >= light.cutoff, out.strength * power(along, light.exponent), all(0.0F));
    }
  }
  const Float facing = dot(at.normal, out.to_light);
  out.facing = facing > 0.0F;
  out.diffuse = maximum(facing, all(0.0F));
  out.specular = all(0.0F);
  if (solid.specular > 0.0F) {
    const Float shine = dot(at.normal, unit(out.to_light + towards));
    out.specular = select(out.facing, power(maximum(shine, all(0.0F)), solid.exponent), all(0.0F)) * solid.specular;
  }
  return out;
}

AIME_INLINE Float channel(const Light& light, const Contribution& share, float rgba, int index) {
  return share.strength * (light.ambient[index] * rgba + share.diffuse * (light.diffuse[index] * rgba) +
                           share.specular * light.specular[index]);
}

// Where something stands between the points and a light that its shadow map would show.
static Mask blocked(const Frame& frame, const Light& light, const Solid& receiver, Vector point, Mask candidates) {
  const Vector offset = point - all(light.position);
  const Float depth = dot(offset, all(light.direction));
  const Float across = dot(offset, all(light.right));
  const Float upward = dot(offset, all(light.up));
  const Float reach = light.directional ? all(light.extent) : depth * light.extent;
  candidates = candidates & (magnitude(across) < reach) & (magnitude(upward) < reach) & (depth > light.near);
  Mask shadow = all(1.0F) < 0.0F;
  if (!any(candidates)) return shadow;
  // To the light: the ray ends where the shadow map begins.
  const Vector way = light.directional ? all(light.direction) * (light.near - depth) : -offset;
  const Float way_square = dot(way, way);
  for (const Solid& solid : frame.solids) {
    if (!solid.casts || &solid == &receiver) continue;
    if (solid.form != Form::kPlane) {
      const Vector centre = all(solid.position) - point;
      const Float nearest = clamp(dot(centre, way) / way_square, 0.0F, 1.0F);
      const Vector miss = centre - way * nearest;
      const Mask near = candidates & (dot(miss, miss) <= solid.radius * solid.radius);
      if (!any(near)) continue;
    }
    const Vector origin = to_unit(solid, point - all(solid.position));
    const Meeting meeting = meet(solid, origin, to_unit(solid, way));
    const Mask between = meeting.met & (meeting.t > 0.0F) & (meeting.t < 1.0F);
    shadow = shadow | (candidates & (between | contains(solid, origin)));
    candidates = candidates & ~shadow;
    if (!any(candidates)) break;
  }
  return shadow;
}

// Where the renderer evaluates the lights: at the surface point, or at corners between which it interpolates.
struct Corners {
  static constexpr int kMost = 3;
  int count;
  Surface at[kMost];
  Float weight[kMost];
};

AIME_INLINE void grid_lines(const Grid& grid, Float x, Float& low, Float& high) {
  const Float cell = floor((x - grid.first) * (1.0F / grid.step));
  low = grid.first + cell * grid.step;
  high = low + grid.step;
  const Mask before = x < grid.first;
  const Mask after = x >= grid.last;
  high = select(before, minimum(high, all(grid.first)), high);
  low = select(before, maximum(low, all(grid.low)), select(after, maximum(low, all(grid.last)), low));
  high = select(after, minimum(high, all(grid.high)), high);
}

// A plane's quad is two triangles, divided from its second corner to its fourth.
AIME_INLINE void plane_corners(const Solid& solid, const Surface& surface, Corners& corners) {
  Float x0, x1, y0, y1;
  grid_lines(solid.grid[0], surface.unit.x, x0, x1);
  grid_lines(solid.grid[1], surface.unit.y, y0, y1);
  const Float a = (surface.unit.x - x0) / maximum(x1 - x0, all(1e-12F));
  const Float b = (surface.unit.y - y0) / maximum(y1 - y0, all(1e-12F));
  const Mask lower = a + b <= 1.0F;
  const auto place = [&](int corner, Float x, Float y, Float weight) __attribute__((always_inline)) {
    const Float dx = x - surface.unit.x;
    const Float dy = y - surface.unit.y;
    Surface& at = corners.at[corner];
    const auto& axes = solid.axes;  // of length 1
    at.point = surface.point + Vector{dx * axes[0][0] + dy * axes[1][0], dx * axes[0][1] + dy * axes[1][1],
                                      dx * axes[0][2] + dy * axes[1][2]};
    at.unit = {x, y, surface.unit.z};
    at.normal = surface.normal;
    at.ray = at.point - (surface.point - surface.ray);
    corners.weight[corner] = weight;
  };
  corners.count = 3;
  place(0, select(lower, x0, x1), select(lower, y0, y1), magnitude(1.0F - a - b));
  place(1, x1, y0, select(lower, a, 1.0F - b));
  place(2, x0, y1, select(lower, b, 1.0F - a));
}

// The sum of the lights that `chosen` takes, with emission if `glows`, before the texture; no channel above 1.
template <typename Choice>
AIME_INLINE Vector sum_lights(const Frame& frame, const Solid& solid, const Surface& at, const float* rgb, bool glows,
                              Choice chosen) {
  const Vector towards = -unit(at.ray);
  const float emission = glows ? solid.emission : 0.0F;
  Vector colour = {all(emission * rgb[0]), all(emission * rgb[1]), all(emission * rgb[2])};
  for (int index = 0; index < frame.light_count; ++index) {
    const Light& light = frame.lights[index];
    if (!chosen(light)) continue;
    const Contribution share = light_surface(light, solid, at, towards);
    colour = colour + Vector{channel(light, share, rgb[0], 0), channel(light, share, rgb[1], 1),
                             channel(light, share, rgb[2], 2)};
  }
  const Float one = all(1.0F);
  return {minimum(colour.x, one), minimum(colour.y, one), minimum(colour.z, one)};
}

template <typename Choice>
AIME_INLINE Vector interpolate_lights(const Frame& frame, const Solid& solid, const Corners& corners, const float* rgb,
                                      bool glows, Choice chosen) {
  Vector colour = sum_lights(frame, solid, corners.at[0], rgb, glows, chosen) * corners.weight[0];
  for (int corner = 1; corner < corners.count; ++corner) {
    colour = colour + sum_lights(frame, solid, corners.at[corner], rgb, glows, chosen) * corners.weight[corner];
  }
  return colour;
}

// The colour as drawn: `shadows` as the regular pass draws opaque solids, without as it draws transparent ones and
// reflections, whose colours `tint` scales (not the specular term).
static Vector light_solid(const Frame& frame, const Solid& solid, const Surface& at, Vector texture, bool shadows,
                          float tint, Mask wanted) {
  const float rgb[3] = {solid.rgba[0] * tint, solid.rgba[1] * tint, solid.rgba[2] * tint};
  Corners corners;
  if (solid.form == Form::kPlane) {
    plane_corners(solid, at, corners);
  } else {
    corners.count = 1;
    corners.at[0] = at;
    corners.weight[0] = all(1.0F);
  }
  const auto meet_texture = [&](Vector c) __attribute__((always_inline)) {
    return Vector{c.x * texture.x, c.y * texture.y, c.z * texture.z};
  };
  Vector drawn = meet_texture(interpolate_lights(frame, solid, corners, rgb, true,
                                                 [&](const Light& light) { return !(light.casts && shadows); }));
  if (!shadows) return drawn;
  for (int index = 0; index < frame.light_count; ++index) {
    const Light& light = frame.lights[index];
    if (!light.casts) continue;
    // A solid shades its own far side.
    const Vector to_light = light.directional ? -all(light.direction) : all(light.position) - at.point;
    const Mask lit = wanted & (dot(at.normal, to_light) > 0.0F);
    const Mask visible = lit & ~blocked(frame, light, solid, at.point, lit);
    const Vector extra = meet_texture(
        interpolate_lights(frame, solid, corners, rgb, false, [&](const Light& other) { return &other == &light; }));
    const Float zero = all(0.0F);
    drawn =
        drawn + Vector{select(visible, extra.x, zero), select(visible, extra.y, zero), select(visible, extra.z, zero)};
  }
  const Float one = all(1.0F);
  return {minimum(drawn.x, one), minimum(drawn.y, one), minimum(drawn.z, one)};
}
