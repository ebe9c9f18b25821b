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

// The colour as drawn: `shadows` as the regular pass draws opaque solids, without as it draws transparent ones and
// reflections, whose colours `tint` scales (not the specular term).
static Vector light_solid(const Frame& frame, const Solid& solid, const Surface& at, Vector texture, bool shadows,
                          float tint, Mask wanted) {
  const Vector towards = -unit(at.ray);
  const float rgb[3] = {solid.rgba[0] * tint, solid.rgba[1] * tint, solid.rgba[2] * tint};
  Vector colour = {all(solid.emission * rgb[0]), all(solid.emission * rgb[1]), all(solid.emission * rgb[2])};
  for (int index = 0; index < frame.light_count; ++index) {
    const Light& light = frame.lights[index];
    if (light.casts && shadows) continue;
    const Contribution share = light_surface(light, solid, at, towards);
    colour = colour + Vector{channel(light, share, rgb[0], 0), channel(light, share, rgb[1], 1),
                             channel(light, share, rgb[2], 2)};
  }
  const Float one = all(1.0F);
  const auto meet_texture = [&](Vector c) __attribute__((always_inline)) {
    return Vector{minimum(c.x, one) * texture.x, minimum(c.y, one) * texture.y, minimum(c.z, one) * texture.z};
  };
  Vector drawn = meet_texture(colour);
  if (!shadows) return drawn;
  for (int index = 0; index < frame.light_count; ++index) {
    const Light& light = frame.lights[index];
    if (!light.casts) continue;
    const Contribution share = light_surface(light, solid, at, towards);
    // A solid shades its own far side.
    const Mask lit = wanted & share.facing;
    const Mask visible = lit & ~blocked(frame, light, solid, at.point, lit);
    const Vector extra = meet_texture(
        {channel(light, share, rgb[0], 0), channel(light, share, rgb[1], 1), channel(light, share, rgb[2], 2)});
    const Float zero = all(0.0F);
    drawn =
        drawn + Vector{select(visible, extra.x, zero), select(visible, extra.y, zero), select(visible, extra.z, zero)};
  }
  return {minimum(drawn.x, one), minimum(drawn.y, one), minimum(drawn.z, one)};
}
