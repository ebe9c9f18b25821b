// A block of four by four pixels, one lane each: what its samples see, and the colours of that.

constexpr int kBlock = 4;
constexpr int kSky = -1;

// The solids that a block may see.
struct Lists {
  const int* opaque;
  int opaque_count;
  const int* reflected;
  int reflected_count;
};

struct Block {
  Float column, row;  // of the pixel's left top corner
  Float x, y;         // of its centre on the image plane
};

AIME_INLINE Float plane_x(const Frame& frame, Float column) { return column * frame.x_step + frame.x_start; }
AIME_INLINE Float plane_y(const Frame& frame, Float row) { return row * frame.y_step + frame.y_start; }

// The colour of `solid` in every pixel of the block, seen from `world`, at the depths and positions given.
static Vector colour_solid(const Frame& frame, const Solid& solid, const View& world, const View& local,
                           const Block& block, Float x, Float y, Float t, bool shadows, float tint, Mask wanted) {
  Surface at;
  at.ray = direction_of(world, x, y);
  at.point = all(world.origin) + at.ray * t;
  at.unit = all(local.origin) + direction_of(local, x, y) * t;
  at.normal = unit(normal_to_world(solid, outward(solid, at.unit)));
  Vector texture = {all(1.0F), all(1.0F), all(1.0F)};
  if (solid.mapping != Mapping::kNone) {
    // OpenGL takes one level of detail for two by two pixels, by differences from their lower left one.
    const Float corner_column = to_float(to_int(block.column) & ~1) + 0.5F;
    const Float corner_row = to_float(to_int(block.row) | 1) + 0.5F;
    const auto unit_point = [&](Float column, Float row) __attribute__((always_inline)) {
      const Float px = plane_x(frame, column);
      const Float py = plane_y(frame, row);
      return all(local.origin) + direction_of(local, px, py) * meet_at(solid, local, px, py).t;
    };
    const Vector corner = unit_point(corner_column, corner_row);
    texture = sample_solid(frame, solid, at.unit, corner, unit_point(corner_column + 1.0F, corner_row),
                           unit_point(corner_column, corner_row - 1.0F));
  }
  return light_solid(frame, solid, at, texture, shadows, tint, wanted);
}

static Vector colour_sky(const Frame& frame, const Block& block) {
  if (frame.sky_distance <= 0.0F) return {all(0.0F), all(0.0F), all(0.0F)};
  const Texture& texture = frame.assets->textures[static_cast<std::size_t>(frame.assets->skybox)];
  // The sky's cube lies on its side: y is up in OpenGL's table.
  const auto look = [&](Float column, Float row) __attribute__((always_inline)) {
    const Vector d = direction_of(frame.camera, plane_x(frame, column), plane_y(frame, row));
    return Vector{d.x, d.z, -d.y};
  };
  const Vector here = look(block.column + 0.5F, block.row + 0.5F);
  return sample_cube(texture, here, look(block.column + 1.5F, block.row + 0.5F),
                     look(block.column + 0.5F, block.row + 1.5F));
}

// How much haze lies in each direction, and its depth: a cone over the plane that is clear where it begins, solid at
// one height and clear again at the horizon.
AIME_INLINE Float haze_over(const Frame& frame, const Block& block, Float& depth) {
  const Vector d = direction_of(frame.camera, block.x, block.y);
  const auto& a = frame.haze_axes;
  const Float x = d.x * a[0][0] + d.y * a[0][1] + d.z * a[0][2];
  const Float y = d.x * a[1][0] + d.y * a[1][1] + d.z * a[1][2];
  const Float z = d.x * a[2][0] + d.y * a[2][1] + d.z * a[2][2];
  const float r = frame.assets->haze;
  const Float across = root(x * x + y * y);
  const Float t = 1.0F / (across - z * (r / frame.haze_elevation));
  const Float height = 1.0F + t * z * (1.0F / frame.haze_elevation);
  // MuJoCo's height of the solid ring: where the line of sight at half a right angle meets the cone.
  const float alpha = ::atan2f(1.0F, r);
  const float ring = 0.707106781F * r * ::sinf(alpha) / ::sinf(2.35619449F - alpha);
  const Float amount = select(height < ring, height * (1.0F / ring), (1.0F - height) * (1.0F / (1.0F - ring)));
  depth = t * frame.sky_distance;
  const Mask inside = (height >= 0.0F) & (height <= 1.0F) & (t > 0.0F);
  return select(inside, amount, all(0.0F));
}

// What the samples of a block show.
struct Samples {
  int count;
  Float x[kMaxSamples], y[kMaxSamples];  // on the image plane
  Float t[kMaxSamples];                  // depth of what is seen
  Int seen[kMaxSamples];                 // index of the solid, or kSky
  Vector colour[kMaxSamples];

  // Where any sample of a pixel shows `solid`; `x`, `y` and `t` are then the point to shade: the pixel's centre, as
  // OpenGL takes, or the samples' mean where the centre misses the solid.
  bool place(const Solid& solid, const View& local, const Block& block, const Mask (&covered)[kMaxSamples], Float& at_x,
             Float& at_y, Float& at_t, Mask& wanted) const {
    wanted = all(1.0F) < 0.0F;
    for (int s = 0; s < count; ++s) wanted = wanted | covered[s];
    if (!any(wanted)) return false;
    at_x = block.x;
    at_y = block.y;
    const Meeting centre = meet_at(solid, local, at_x, at_y);
    at_t = centre.t;
    const Mask good = centre.met & (centre.t > 0.0F);
    // OpenGL extrapolates a round shape's colours to a centre beside it: what the edge shows is nearest to that.
    const bool round = solid.form == Form::kBall || solid.form == Form::kCapsule || solid.form == Form::kCylinder;
    if (round || !any(wanted & ~good)) return true;
    Float sum_x = all(0.0F), sum_y = all(0.0F), hits = all(0.0F);
    for (int s = 0; s < count; ++s) {
      const Float one = select(covered[s], all(1.0F), all(0.0F));
      sum_x = sum_x + one * x[s];
      sum_y = sum_y + one * y[s];
      hits = hits + one;
    }
    const Float share = 1.0F / maximum(hits, all(1.0F));
    at_x = select(good, at_x, sum_x * share);
    at_y = select(good, at_y, sum_y * share);
    at_t = select(good, at_t, meet_at(solid, local, at_x, at_y).t);
    return true;
  }
};

// The nearest of the solids listed, beyond depth `nearest`; as the mirror's camera sees them if `reflected`.
static void find_nearest(const Frame& frame, const int* list, int list_count, bool reflected,
                         const Float (&nearest)[kMaxSamples], Samples& samples) {
  for (int entry = 0; entry < list_count; ++entry) {
    const int index = list[entry];
    const Solid& solid = frame.solids[static_cast<std::size_t>(index)];
    const View& view = reflected ? solid.mirror : solid.view;
    for (int s = 0; s < samples.count; ++s) {
      const Meeting meeting = meet(solid, all(view.origin), direction_of(view, samples.x[s], samples.y[s]));
      const Mask closer = meeting.met & (meeting.t < samples.t[s]) & (meeting.t > nearest[s]);
      samples.t[s] = select(closer, meeting.t, samples.t[s]);
      samples.seen[s] = select(closer, all(index), samples.seen[s]);
    }
  }
}

static void colour_opaque(const Frame& frame, const Lists& lists, const Block& block, Samples& samples) {
  for (int entry = 0; entry < lists.opaque_count; ++entry) {
    const int index = lists.opaque[entry];
    const Solid& solid = frame.solids[static_cast<std::size_t>(index)];
    Mask covered[kMaxSamples];
    for (int s = 0; s < samples.count; ++s) covered[s] = samples.seen[s] == all(index);
    Float x, y, t;
    Mask wanted;
    if (!samples.place(solid, solid.view, block, covered, x, y, t, wanted)) continue;
    const Vector colour = colour_solid(frame, solid, frame.camera, solid.view, block, x, y, t, true, 1.0F, wanted);
    for (int s = 0; s < samples.count; ++s) samples.colour[s] = select(covered[s], colour, samples.colour[s]);
  }
}

// Blends a transparent solid over what the samples show: where its depth is below theirs.
static void blend(const Frame& frame, const Solid& solid, const View& world, const View& local, float tint,
                  const Block& block, const Float (&nearest)[kMaxSamples], Samples& samples) {
  Mask covered[kMaxSamples];
  for (int s = 0; s < samples.count; ++s) {
    const Meeting meeting = meet_at(solid, local, samples.x[s], samples.y[s]);
    covered[s] = meeting.met & (meeting.t < samples.t[s]) & (meeting.t > nearest[s]);
  }
  Float x, y, t;
  Mask wanted;
  if (!samples.place(solid, local, block, covered, x, y, t, wanted)) return;
  const Vector colour = colour_solid(frame, solid, world, local, block, x, y, t, false, tint, wanted);
  const Float alpha = all(solid.rgba[3]);
  for (int s = 0; s < samples.count; ++s) {
    const Vector mixed = samples.colour[s] + (colour - samples.colour[s]) * alpha;
    samples.colour[s] = select(covered[s], mixed, samples.colour[s]);
  }
}

AIME_INLINE bool outside(const int (&pixels)[4], int left, int top, int size) {
  return pixels[0] >= left + size || pixels[1] >= top + size || pixels[2] <= left || pixels[3] <= top;
}

// MuJoCo draws transparent solids twice: from the nearest on, and back again.
static void blend_all(const Frame& frame, bool reflected, const Block& block, int left, int top,
                      const Float (&nearest)[kMaxSamples], Samples& samples) {
  const auto count = static_cast<int>(frame.transparent.size());
  for (int step = 0; step < 2 * count; ++step) {
    const int place = step < count ? step : 2 * count - 1 - step;
    const Solid& solid = frame.solids[static_cast<std::size_t>(frame.transparent[static_cast<std::size_t>(place)])];
    if (outside(reflected ? solid.reflected : solid.seen, left, top, kBlock)) continue;
    if (reflected) {
      blend(frame, solid, frame.mirror_camera, solid.mirror, frame.reflectance, block, nearest, samples);
    } else {
      blend(frame, solid, frame.camera, solid.view, 1.0F, block, nearest, samples);
    }
  }
}

// Adds what the mirror shows: the solids as its own camera sees them, beyond the mirror's surface.
static void add_reflection(const Frame& frame, const Lists& lists, const Block& block, int left, int top,
                           Samples& samples) {
  const Solid& mirror = frame.solids[static_cast<std::size_t>(frame.mirror)];
  Mask on_mirror[kMaxSamples];
  Mask any_mirror = all(1.0F) < 0.0F;
  for (int s = 0; s < samples.count; ++s) {
    on_mirror[s] = samples.seen[s] == all(frame.mirror);
    if (mirror.form == Form::kBox) {
      const Float z = mirror.view.origin[2] + direction_of(mirror.view, samples.x[s], samples.y[s]).z * samples.t[s];
      on_mirror[s] = on_mirror[s] & (z > 1.0F - 1e-3F);
    }
    any_mirror = any_mirror | on_mirror[s];
  }
  if (!any(any_mirror)) return;
  Samples image;
  image.count = samples.count;
  Float nearest[kMaxSamples];
  for (int s = 0; s < samples.count; ++s) {
    image.x[s] = samples.x[s];
    image.y[s] = samples.y[s];
    nearest[s] = samples.t[s];
    image.t[s] = select(on_mirror[s], all(frame.far), all(0.0F));
    image.seen[s] = all(kSky);
    image.colour[s] = {all(0.0F), all(0.0F), all(0.0F)};
  }
  find_nearest(frame, lists.reflected, lists.reflected_count, true, nearest, image);
  for (int entry = 0; entry < lists.reflected_count; ++entry) {
    const int index = lists.reflected[entry];
    const Solid& solid = frame.solids[static_cast<std::size_t>(index)];
    Mask covered[kMaxSamples];
    for (int s = 0; s < samples.count; ++s) covered[s] = image.seen[s] == all(index);
    Float x, y, t;
    Mask wanted;
    if (!image.place(solid, solid.mirror, block, covered, x, y, t, wanted)) continue;
    const Vector colour =
        colour_solid(frame, solid, frame.mirror_camera, solid.mirror, block, x, y, t, false, frame.reflectance, wanted);
    for (int s = 0; s < samples.count; ++s) image.colour[s] = select(covered[s], colour, image.colour[s]);
  }
  blend_all(frame, true, block, left, top, nearest, image);
  const Float one = all(1.0F);
  for (int s = 0; s < samples.count; ++s) {
    const Vector sum = samples.colour[s] + image.colour[s];
    const Vector clamped = {minimum(sum.x, one), minimum(sum.y, one), minimum(sum.z, one)};
    samples.colour[s] = select(on_mirror[s], clamped, samples.colour[s]);
  }
}

static void add_sky(const Frame& frame, const Block& block, Samples& samples) {
  Mask sky[kMaxSamples];
  Mask any_sky = samples.seen[0] == all(kSky);
  for (int s = 0; s < samples.count; ++s) {
    sky[s] = samples.seen[s] == all(kSky);
    any_sky = any_sky | sky[s];
  }
  if (any(any_sky)) {
    const Vector colour = colour_sky(frame, block);
    for (int s = 0; s < samples.count; ++s) samples.colour[s] = select(sky[s], colour, samples.colour[s]);
  }
  if (!frame.haze) return;
  Float depth;
  const Float amount = haze_over(frame, block, depth);
  if (!any(amount > 0.0F)) return;
  const Vector colour = all(frame.assets->haze_colour.data());
  for (int s = 0; s < samples.count; ++s) {
    const Mask before = depth < samples.t[s];
    const Vector mixed = samples.colour[s] + (colour - samples.colour[s]) * amount;
    samples.colour[s] = select(before, mixed, samples.colour[s]);
    samples.t[s] = select(before & (amount > 0.0F), depth, samples.t[s]);
  }
}

static void store_colours(const Frame& frame, const Samples& samples, int left, int top, std::uint8_t* rgb) {
  Vector sum = samples.colour[0];
  for (int s = 1; s < samples.count; ++s) sum = sum + samples.colour[s];
  alignas(64) std::int32_t channels[3][kLanes];
  const float scale = 255.0F / static_cast<float>(samples.count);
  store(to_int(clamp(sum.x * scale, 0.0F, 255.0F) + 0.5F), channels[0]);
  store(to_int(clamp(sum.y * scale, 0.0F, 255.0F) + 0.5F), channels[1]);
  store(to_int(clamp(sum.z * scale, 0.0F, 255.0F) + 0.5F), channels[2]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int column = left + lane % kBlock;
    const int row = top + lane / kBlock;
    if (column >= frame.width || row >= frame.height) continue;
    std::uint8_t* pixel = rgb + 3 * (static_cast<std::ptrdiff_t>(row) * frame.width + column);
    for (int c = 0; c < 3; ++c) pixel[c] = static_cast<std::uint8_t>(channels[c][lane]);
  }
}

static void draw_colours(const Frame& frame, const Lists& lists, const Block& block, int left, int top,
                         std::uint8_t* rgb) {
  Samples samples;
  samples.count = frame.samples;
  for (int s = 0; s < samples.count; ++s) {
    samples.x[s] = plane_x(frame, block.column + frame.sample_x[s]);
    samples.y[s] = plane_y(frame, block.row + frame.sample_y[s]);
    samples.t[s] = all(frame.far);
    if (frame.sky_distance > 0.0F) {
      // The sky is a cylinder around the eye, and hides what lies beyond.
      const Vector d = direction_of(frame.camera, samples.x[s], samples.y[s]);
      const Float reach = maximum(root(d.x * d.x + d.y * d.y), magnitude(d.z));
      samples.t[s] = frame.sky_distance / reach;
    }
    samples.seen[s] = all(kSky);
    samples.colour[s] = {all(0.0F), all(0.0F), all(0.0F)};
  }
  Float nearest[kMaxSamples];
  for (int s = 0; s < samples.count; ++s) nearest[s] = all(frame.near);
  find_nearest(frame, lists.opaque, lists.opaque_count, false, nearest, samples);
  colour_opaque(frame, lists, block, samples);
  if (frame.mirror >= 0) add_reflection(frame, lists, block, left, top, samples);
  add_sky(frame, block, samples);
  blend_all(frame, false, block, left, top, nearest, samples);
  store_colours(frame, samples, left, top, rgb);
}

// Geom ids and depth: one ray through each pixel's centre. Transparent solids have an id like any other, but no depth.
static void draw_centres(const Frame& frame, const Lists& lists, const Block& block, int left, int top,
                         const Output& output) {
  Float depth = all(frame.far);
  Float id_depth = all(frame.far);
  Int id = all(-1);
  const auto visit = [&](int index, bool opaque) __attribute__((always_inline)) {
    const Solid& solid = frame.solids[static_cast<std::size_t>(index)];
    const Meeting meeting = meet(solid, all(solid.view.origin), direction_of(solid.view, block.x, block.y));
    const Mask met = meeting.met & (meeting.t > frame.near);
    if (opaque) depth = select(met & (meeting.t < depth), meeting.t, depth);
    if (solid.segment < -1) return;
    const Mask closer = met & (meeting.t < id_depth);
    id_depth = select(closer, meeting.t, id_depth);
    id = select(closer, all(solid.segment), id);
  };
  for (int entry = 0; entry < lists.opaque_count; ++entry) visit(lists.opaque[entry], true);
  for (const int index : frame.transparent) {
    if (!outside(frame.solids[static_cast<std::size_t>(index)].seen, left, top, kBlock)) visit(index, false);
  }
  alignas(64) std::int32_t ids[kLanes];
  alignas(64) float depths[kLanes];
  store(id, ids);
  store(depth, depths);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int column = left + lane % kBlock;
    const int row = top + lane / kBlock;
    if (column >= frame.width || row >= frame.height) continue;
    const std::ptrdiff_t pixel = static_cast<std::ptrdiff_t>(row) * frame.width + column;
    if (output.segmentation != nullptr) output.segmentation[pixel] = ids[lane];
    if (output.depth != nullptr) output.depth[pixel] = depths[lane];
  }
}

static void draw_block(const Frame& frame, const Lists& lists, int left, int top, const Output& output) {
  alignas(64) float columns[kLanes], rows[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    columns[lane] = static_cast<float>(left + lane % kBlock);
    rows[lane] = static_cast<float>(top + lane / kBlock);
  }
  Block block;
  block.column = load(columns);
  block.row = load(rows);
  block.x = plane_x(frame, block.column + 0.5F);
  block.y = plane_y(frame, block.row + 0.5F);
  if (output.rgb != nullptr) draw_colours(frame, lists, block, left, top, output.rgb);
  if (output.segmentation != nullptr || output.depth != nullptr) {
    draw_centres(frame, lists, block, left, top, output);
  }
}

// All blocks, each with the solids whose outline touches it. `room` holds both lists.
static void draw(const Frame& frame, const Output& output, int* room) {
  int* reflected = room + frame.solids.capacity();
  for (int top = 0; top < frame.height; top += kBlock) {
    for (int left = 0; left < frame.width; left += kBlock) {
      Lists lists = {room, 0, reflected, 0};
      for (const int index : frame.opaque) {
        const Solid& solid = frame.solids[static_cast<std::size_t>(index)];
        if (!outside(solid.seen, left, top, kBlock)) room[lists.opaque_count++] = index;
        if (frame.mirror < 0 || index == frame.mirror) continue;
        // A plane has one side: it is reflected only if the mirror's camera is on the eye's.
        const bool turned = solid.form == Form::kPlane && solid.view.origin[2] * solid.mirror.origin[2] < 0.0F;
        if (!turned && !outside(solid.reflected, left, top, kBlock)) reflected[lists.reflected_count++] = index;
      }
      draw_block(frame, lists, left, top, output);
    }
  }
}
