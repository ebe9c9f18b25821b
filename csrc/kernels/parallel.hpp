// Work handed out tile by tile to PyTorch's own OpenMP threads, or to plain threads where there are none.
#pragma once

#include <cstdint>
#include <functional>

namespace aime {

using TileWork = std::function<void(std::int64_t tile)>;

// Calls the work for every tile in [0, tiles) on `threads` threads, the calling one among them, or on the calling one
// alone where `nanoseconds`, what all tiles cost one thread, is little. `make_worker` is called once in each thread and
// gives it its own scratch memory. Which thread runs a tile is left to chance; a tile must write only what is its own.
// Rethrows the first failure after all threads have ended.
//
// PyTorch's OpenMP threads spin for a while after each of its kernels; a thread of our own beside them shared their
// cores and made two threads slower than one. So the work enters the OpenMP runtime that PyTorch has loaded (its entry
// point is looked up at run time; nothing is linked). A team of another size would make the runtime end threads and
// start them again at PyTorch's next kernel, hence all threads or one.
void run_tiles(std::int64_t tiles, int threads, double nanoseconds, const std::function<TileWork()>& make_worker);

}  // namespace aime
