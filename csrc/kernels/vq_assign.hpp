// Nearest-code search: score = |c|^2 / 2 - x.c, streamed over codes with a running minimum; rows x codes is never
// stored.
//
// The inner kernel exists once per instruction set (vq_assign_*.cpp, each with its own target attribute) and is chosen
// at run time by what the processor reports, so that one binary serves every x86-64 machine, and other machines too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aime {

// One tile: `rows` rows of one head, packed (rows x width, row after row), against all packed codes.
//   codes: packed by groups of `kLanes * kVectors` codes (see TileKernel), width values each, group after group
//   half_norms: |c|^2 / 2 of every packed code in the scale of the packed ones, +inf for the padding
//   best, best_index: out, one per row; the lowest index wins a tie; a row without any finite score gets index 0
struct Tile {
  const float* rows_packed;
  const float* codes_packed;
  const float* half_norms;
  std::int64_t row_count;
  std::int64_t group_count;
  std::int64_t width;
  std::int32_t* best_index;
};

struct TileKernel {
  const char* name;
  std::int64_t group;  // codes packed together: lanes of a vector times vectors in flight
  std::int64_t step;   // rows handled together; row_count of a tile is a multiple of it
  void (*run)(const Tile& tile);
};

constexpr std::int64_t kMaxTileRows = 64;

extern const TileKernel kBaselineKernel;
#if defined(__x86_64__)
extern const TileKernel kAvx2Kernel;
extern const TileKernel kAvx512Kernel;
#endif

}  // namespace aime
