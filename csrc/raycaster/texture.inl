// Texture look-ups as OpenGL does them: linear within a mipmap level and between two.

struct Footprint {
  Float u, v;    // in textures, at the pixel
  Float square;  // the larger squared length, in textures, of one pixel's step to the right or down
};

AIME_INLINE Float lower_channel(Int texel, int shift) { return to_float((texel >> shift) & 0xFF); }

// Blends the four texels around a position. `origin` is the first texel of the image in the table.
template <bool kRepeat>
AIME_INLINE Vector bilinear(const Texture& texture, Int level, Int face, Float u, Float v) {
  const auto* texels = reinterpret_cast<const std::int32_t*>(texture.texels.data());
  const Int width = gather(texture.width.data(), level);
  const Int height = gather(texture.height.data(), level);
  const Int origin = gather(texture.offset.data(), level) + face * (width * height);
  const Float x = u * to_float(width) - 0.5F;
  const Float y = v * to_float(height) - 0.5F;
  const Float left = floor(x);
  const Float top = floor(y);
  const Float wx = x - left;
  const Float wy = y - top;
  const Int zero = all(0);
  Int x0 = to_int(left);
  Int y0 = to_int(top);
  Int x1 = x0 + 1;
  Int y1 = y0 + 1;
  const Mask before_x = left < 0.0F;
  const Mask before_y = top < 0.0F;
  const Mask after_x = to_float(x1) >= to_float(width);
  const Mask after_y = to_float(y1) >= to_float(height);
  x0 = select(before_x, kRepeat ? width - 1 : zero, x0);
  y0 = select(before_y, kRepeat ? height - 1 : zero, y0);
  x1 = select(after_x, kRepeat ? zero : width - 1, x1);
  y1 = select(after_y, kRepeat ? zero : height - 1, y1);
  const Int row0 = origin + y0 * width;
  const Int row1 = origin + y1 * width;
  const Int a = gather(texels, row0 + x0);
  const Int b = gather(texels, row0 + x1);
  const Int c = gather(texels, row1 + x0);
  const Int d = gather(texels, row1 + x1);
  const auto blend = [&](int shift) __attribute__((always_inline)) {
    const Float above = lower_channel(a, shift) + wx * (lower_channel(b, shift) - lower_channel(a, shift));
    const Float below = lower_channel(c, shift) + wx * (lower_channel(d, shift) - lower_channel(c, shift));
    return (above + wy * (below - above)) * (1.0F / 255.0F);
  };
  return {blend(0), blend(8), blend(16)};
}

template <bool kRepeat>
static __attribute__((noinline)) Vector trilinear(const Texture& texture, Int face, const Footprint& at) {
  const float size = static_cast<float>(texture.width[0] > texture.height[0] ? texture.width[0] : texture.height[0]);
  const Float detail =
      clamp(0.5F * log2(maximum(at.square * (size * size), all(1e-20F))), 0.0F, static_cast<float>(texture.levels - 1));
  const Int level = to_int(detail);
  const Float weight = detail - to_float(level);
  Float u = at.u;
  Float v = at.v;
  if (kRepeat) {
    u = u - floor(u);
    v = v - floor(v);
  }
  // Also keeps what is not a number inside the table.
  u = clamp(u, 0.0F, 1.0F);
  v = clamp(v, 0.0F, 1.0F);
  const Vector fine = bilinear<kRepeat>(texture, level, face, u, v);
  if (!any(weight > 0.0F)) return fine;
  const Int next = to_int(clamp(to_float(level) + 1.0F, 0.0F, static_cast<float>(texture.levels - 1)));
  const Vector coarse = bilinear<kRepeat>(texture, next, face, u, v);
  return fine + (coarse - fine) * weight;
}

// The face of a cube map that a direction points at, by OpenGL's table, and the place on it.
struct CubeFace {
  Mask on_x, on_y;
  Float sign;

  AIME_METHOD void choose(Vector d) {
    const Float x = magnitude(d.x);
    const Float y = magnitude(d.y);
    const Float z = magnitude(d.z);
    on_x = (x >= y) & (x >= z);
    on_y = ~on_x & (y >= z);
    sign = select(select(on_x, d.x, select(on_y, d.y, d.z)) < 0.0F, all(-1.0F), all(1.0F));
  }
  AIME_METHOD Int index() const {
    const Int axis = select(on_x, all(0), select(on_y, all(2), all(4)));
    return axis + select(sign < 0.0F, all(1), all(0));
  }
  AIME_METHOD void place(Vector d, Float& u, Float& v) const {
    const Float scale = 0.5F / magnitude(select(on_x, d.x, select(on_y, d.y, d.z)));
    const Float across = select(on_x, -sign * d.z, select(on_y, d.x, sign * d.x));
    const Float down = select(on_x, -d.y, select(on_y, sign * d.z, -d.y));
    u = across * scale + 0.5F;
    v = down * scale + 0.5F;
  }
};

// `to_right` and `to_below` are the directions one pixel on.
static __attribute__((noinline)) Vector sample_cube(const Texture& texture, Vector d, Vector to_right,
                                                    Vector to_below) {
  CubeFace face;
  face.choose(d);
  Footprint at;
  face.place(d, at.u, at.v);
  Float u = at.u, v = at.v;
  face.place(to_right, u, v);
  const Float right = (u - at.u) * (u - at.u) + (v - at.v) * (v - at.v);
  face.place(to_below, u, v);
  const Float below = (u - at.u) * (u - at.u) + (v - at.v) * (v - at.v);
  at.square = maximum(right, below);
  return trilinear<false>(texture, face.index(), at);
}

// Angle of (x, y) as a part of the turn, in [0, 1).
static __attribute__((noinline)) Float turn(Float x, Float y) {
  alignas(64) float xs[kLanes], ys[kLanes];
  store(x, xs);
  store(y, ys);
  for (int lane = 0; lane < kLanes; ++lane) {
    const float part = ::atan2f(ys[lane], xs[lane]) * 0.159154943F;
    xs[lane] = part < 0.0F ? part + 1.0F : part;
  }
  return load(xs);
}

// Elevation over the xy plane as a part of a right angle, in [-1, 1].
static __attribute__((noinline)) Float elevation(Float across, Float z) {
  alignas(64) float xs[kLanes], zs[kLanes];
  store(across, xs);
  store(z, zs);
  for (int lane = 0; lane < kLanes; ++lane) xs[lane] = ::atan2f(zs[lane], xs[lane]) * 0.636619772F;
  return load(xs);
}

// The texture coordinates that MuJoCo gives its shapes.
static __attribute__((noinline)) void surface_coordinates(const Solid& solid, Vector p, Float& u, Float& v) {
  switch (solid.form) {
    case Form::kPlane:
      u = p.x;
      v = p.y;
      break;
    case Form::kBall:
      u = turn(p.x, p.y);
      v = 0.5F - 0.5F * elevation(root(p.x * p.x + p.y * p.y), p.z);
      break;
    case Form::kCapsule: {
      u = turn(p.x, p.y);
      const Float z = p.z - clamp(p.z, -solid.half_length, solid.half_length);
      const Float height = elevation(root(p.x * p.x + p.y * p.y), z);
      const Float side = 0.5F - p.z * (0.5F / (solid.half_length > 0.0F ? solid.half_length : 1.0F));
      v = select(z > 0.0F, 1.0F - height, select(z < 0.0F, -height, side));
      break;
    }
    case Form::kCylinder: {
      const Float radius = root(p.x * p.x + p.y * p.y);
      const Mask cap = magnitude(p.z) > radius;
      u = select(cap, 0.5F + 0.5F * p.x, turn(p.x, p.y));
      v = select(cap, 0.5F + 0.5F * p.y, 0.5F - 0.5F * p.z);
      break;
    }
    default: {
      const Float x = magnitude(p.x);
      const Float y = magnitude(p.y);
      const Float z = magnitude(p.z);
      const Mask on_x = (x >= y) & (x >= z);
      const Mask on_z = ~on_x & (z >= y);
      u = 0.5F + 0.5F * select(on_x, p.y, p.x);
      v = 0.5F - 0.5F * select(on_z, p.y, p.z);
      break;
    }
  }
  u = u * solid.texture_scale[0] + solid.texture_offset[0];
  v = v * solid.texture_scale[1] + solid.texture_offset[1];
}

// MuJoCo's shapes before they are stretched: as unit coordinates, but a capsule's cylinder ends at 1.
AIME_INLINE Vector cube_coordinates(const Solid& solid, Vector p) {
  if (solid.form == Form::kCapsule) {
    const Float middle = clamp(p.z, -solid.half_length, solid.half_length);
    p.z = p.z - middle + middle * (1.0F / (solid.half_length > 0.0F ? solid.half_length : 1.0F));
  }
  return {p.x * solid.cube_scale[0], p.y * solid.cube_scale[1], p.z * solid.cube_scale[2]};
}

// The texture of `solid` at unit point `p`; `right` and `below` are the points one pixel on.
static Vector sample_solid(const Frame& frame, const Solid& solid, Vector p, Vector corner, Vector right,
                           Vector below) {
  const Texture& texture = frame.assets->textures[static_cast<std::size_t>(solid.texture)];
  if (solid.mapping == Mapping::kCube) {
    return sample_cube(texture, cube_coordinates(solid, p), cube_coordinates(solid, p + (right - corner)),
                       cube_coordinates(solid, p + (below - corner)));
  }
  Footprint at;
  Float u0, v0, u1, v1, u2, v2;
  surface_coordinates(solid, p, at.u, at.v);
  surface_coordinates(solid, corner, u0, v0);
  surface_coordinates(solid, right, u1, v1);
  surface_coordinates(solid, below, u2, v2);
  // Across the seam of a round shape the coordinate jumps by a whole texture.
  const Float seam = all(solid.form == Form::kPlane ? 0.0F : solid.texture_scale[0]);
  const auto step = [&](Float from, Float to) __attribute__((always_inline)) {
    const Float d = to - from;
    const Float turned = d - select(d > 0.0F, seam, -seam);
    return select(magnitude(turned) < magnitude(d), turned, d);
  };
  const Float du1 = step(u0, u1);
  const Float du2 = step(u0, u2);
  const float tall = static_cast<float>(texture.height[0]) / static_cast<float>(texture.width[0]);
  const Float dv1 = (v1 - v0) * tall;
  const Float dv2 = (v2 - v0) * tall;
  const float wide = texture.width[0] >= texture.height[0] ? 1.0F : 1.0F / tall;
  at.square = maximum(du1 * du1 + dv1 * dv1, du2 * du2 + dv2 * dv2) * (wide * wide);
  return trilinear<true>(texture, all(0), at);
}
