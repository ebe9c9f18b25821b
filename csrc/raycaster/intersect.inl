// Where rays meet solids. All in the solid's unit coordinates; a ray is origin + t direction.

struct Meeting {
  Float t;  // of the entry; for a ray that passes by, about the nearest point
  Mask met;
};

AIME_INLINE Vector direction_of(const View& view, Float x, Float y) {
  return {x * view.right[0] + (y * view.up[0] + view.forward[0]),
          x * view.right[1] + (y * view.up[1] + view.forward[1]),
          x * view.right[2] + (y * view.up[2] + view.forward[2])};
}

AIME_INLINE Meeting meet_plane(const Solid& solid, Vector o, Vector d) {
  const Float t = -o.z / d.z;
  const Mask met = (magnitude(o.x + t * d.x) <= solid.bound[0]) & (magnitude(o.y + t * d.y) <= solid.bound[1]);
  return {t, met};
}

AIME_INLINE Meeting meet_ball(Vector o, Vector d) {
  const Float a = dot(d, d);
  const Float b = dot(o, d);
  const Float discriminant = b * b - a * (dot(o, o) - 1.0F);
  return {(-b - root(maximum(discriminant, all(0.0F)))) / a, discriminant >= 0.0F};
}

// The endless cylinder around z: entry, and whether the ray meets it.
AIME_INLINE Meeting meet_tube(Vector o, Vector d) {
  const Float a = maximum(d.x * d.x + d.y * d.y, all(1e-12F));
  const Float b = o.x * d.x + o.y * d.y;
  const Float discriminant = b * b - a * (o.x * o.x + o.y * o.y - 1.0F);
  return {(-b - root(maximum(discriminant, all(0.0F)))) / a, discriminant >= 0.0F};
}

AIME_INLINE Meeting meet_capsule(const Solid& solid, Vector o, Vector d) {
  const Meeting tube = meet_tube(o, d);
  const Float z = o.z + tube.t * d.z;
  const Mask side = magnitude(z) <= solid.half_length;
  if (!any(~side)) return tube;
  const Float end = select(z > 0.0F, all(solid.half_length), all(-solid.half_length));
  const Meeting cap = meet_ball({o.x, o.y, o.z - end}, d);
  return {select(side, tube.t, cap.t), tube.met & (side | cap.met)};
}

AIME_INLINE Meeting meet_cylinder(Vector o, Vector d) {
  const Meeting tube = meet_tube(o, d);
  const Mask side = tube.met & (magnitude(o.z + tube.t * d.z) <= 1.0F);
  const Float end = select(d.z > 0.0F, all(-1.0F), all(1.0F));
  const Float t = (end - o.z) / d.z;
  const Float x = o.x + t * d.x;
  const Float y = o.y + t * d.y;
  const Mask cap = x * x + y * y <= 1.0F;
  return {select(cap & ~side, t, tube.t), side | cap};
}

AIME_INLINE Meeting meet_box(Vector o, Vector d) {
  const Vector inverse = {1.0F / d.x, 1.0F / d.y, 1.0F / d.z};
  const Vector low = {(-1.0F - o.x) * inverse.x, (-1.0F - o.y) * inverse.y, (-1.0F - o.z) * inverse.z};
  const Vector high = {(1.0F - o.x) * inverse.x, (1.0F - o.y) * inverse.y, (1.0F - o.z) * inverse.z};
  const Float entry = maximum(maximum(minimum(low.x, high.x), minimum(low.y, high.y)), minimum(low.z, high.z));
  const Float exit = minimum(minimum(maximum(low.x, high.x), maximum(low.y, high.y)), maximum(low.z, high.z));
  return {entry, entry <= exit};
}

AIME_INLINE Meeting meet(const Solid& solid, Vector o, Vector d) {
  switch (solid.form) {
    case Form::kPlane:
      return meet_plane(solid, o, d);
    case Form::kBall:
      return meet_ball(o, d);
    case Form::kCapsule:
      return meet_capsule(solid, o, d);
    case Form::kCylinder:
      return meet_cylinder(o, d);
    default:
      return meet_box(o, d);
  }
}

// As `meet`, for the places where speed matters less than the size of the code.
static __attribute__((noinline)) Meeting meet_at(const Solid& solid, const View& view, Float x, Float y) {
  return meet(solid, all(view.origin), direction_of(view, x, y));
}

// Whether the points are inside; of a plane, never.
AIME_INLINE Mask contains(const Solid& solid, Vector p) {
  constexpr float kInside = 1.0F - 1e-3F;  // not by rounding
  switch (solid.form) {
    case Form::kPlane:
      return all(1.0F) < 0.0F;
    case Form::kBall:
      return dot(p, p) < kInside;
    case Form::kCapsule: {
      const Float z = p.z - clamp(p.z, -solid.half_length, solid.half_length);
      return p.x * p.x + p.y * p.y + z * z < kInside;
    }
    case Form::kCylinder:
      return (p.x * p.x + p.y * p.y < kInside) & (magnitude(p.z) < kInside);
    default:
      return maximum(maximum(magnitude(p.x), magnitude(p.y)), magnitude(p.z)) < kInside;
  }
}

// The outward direction at surface point `p`, not normalised, in unit coordinates.
AIME_INLINE Vector outward(const Solid& solid, Vector p) {
  const Float zero = all(0.0F);
  switch (solid.form) {
    case Form::kPlane:
      return {zero, zero, all(1.0F)};
    case Form::kBall:
      return p;
    case Form::kCapsule:
      return {p.x, p.y, p.z - clamp(p.z, -solid.half_length, solid.half_length)};
    case Form::kCylinder: {
      const Float radius = root(p.x * p.x + p.y * p.y);
      const Mask cap = magnitude(p.z) > radius;
      return {select(cap, zero, p.x), select(cap, zero, p.y), select(cap, p.z, zero)};
    }
    default: {
      const Float x = magnitude(p.x);
      const Float y = magnitude(p.y);
      const Float z = magnitude(p.z);
      const Mask on_x = (x >= y) & (x >= z);
      const Mask on_y = ~on_x & (y >= z);
      const Mask on_z = ~on_x & ~on_y;
      return {select(on_x, p.x, zero), select(on_y, p.y, zero), select(on_z, p.z, zero)};
    }
  }
}

// A direction from unit coordinates to the world, for normals: by the transpose.
AIME_INLINE Vector normal_to_world(const Solid& solid, Vector n) {
  const auto& a = solid.axes;
  return {n.x * a[0][0] + n.y * a[1][0] + n.z * a[2][0], n.x * a[0][1] + n.y * a[1][1] + n.z * a[2][1],
          n.x * a[0][2] + n.y * a[1][2] + n.z * a[2][2]};
}

AIME_INLINE Vector to_unit(const Solid& solid, Vector v) {
  const auto& a = solid.axes;
  return {v.x * a[0][0] + v.y * a[0][1] + v.z * a[0][2], v.x * a[1][0] + v.y * a[1][1] + v.z * a[1][2],
          v.x * a[2][0] + v.y * a[2][1] + v.z * a[2][2]};
}
