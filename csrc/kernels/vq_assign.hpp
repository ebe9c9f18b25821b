// Nearest-code search: score = |c|^2 / 2 - x.c, streamed over codes with a running minimum; rows x codes is never
// stored.
//
// The inner kernel exists once per instruction set (vq_assign_*.cpp, each with its own target attribute) and is chosen
// at run time by what the processor reports, so that one binary serves every x86-64 machine, and other machines too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aime {

// One tile: `row_count` rows of one head, packed (rows x width, row after row), against all packed codes.
//   codes_packed: by groups of `kLanes * kVectors` codes (see TileKernel), width values each, group after group
//   half_norms: |c|^2 / 2 of every packed code in the scale of the packed ones, +inf for the padding
//   codes: as they are (codes x width)
//   index, distance: out, `stride` apart, one per row up to `kept`; the lowest index wins a tie; a row without any
//   finite score gets index 0; distance is |x - c|^2 of the chosen code
//   quantized: out, the chosen codes, stride * width apart, or null
struct Tile {
  const float* rows_packed;
  const float* codes_packed;
  const float* half_norms;
  const float* codes;
  std::int64_t row_count;  // a multiple of the kernel's step: the last ones may be padding
  std::int64_t kept;
  std::int64_t group_count;
  std::int64_t width;
  std::int64_t stride;
  std::int32_t* index;
  float* distance;
  float* quantized;
};

struct TileKernel {
  const char* name;
  std::int64_t group;  // codes packed together: lanes of a vector times vectors in flight
  std::int64_t step;   // rows handled together; row_count of a tile is a multiple of it
  void (*run)(const Tile& tile);
};

// Rows, one group of codes and the running minima of a tile stay in 48 KiB of first-level cache up to 64 channels.
constexpr std::int64_t kMaxTileRows = 48;

extern const TileKernel kBaselineKernel;
#if defined(__x86_64__)
extern const TileKernel kAvx2Kernel;
extern const TileKernel kAvx512Kernel;
#endif

}  // namespace aime
