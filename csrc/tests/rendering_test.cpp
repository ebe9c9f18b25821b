// Pictures with OpenGL: the same on one thread and on several, each with a context of its own, made and freed in turn.
#include "../parallel_environment/gl_context.hpp"
#include "check.hpp"
#include "driver.hpp"

#include <cstdio>
#include <vector>

namespace {

std::vector<std::uint8_t> pictures(int threads) {
  aime::BatchSettings settings;
  settings.domain = "cartpole";
  settings.task = "swingup";
  settings.num_envs = 4;
  settings.num_threads = threads;
  settings.step_limit = 10.0;
  settings.frame_stack = 2;
  settings.render.height = 12;
  settings.render.width = 16;
  settings.render.segmentation = true;
  settings.render.quality = aime::Quality::kFast;
  aime::tests::Driver driver(settings);
  std::vector<std::uint8_t> seen;
  const auto append = [&] {
    const aime::Rows& rows = driver.results().rows;
    seen.insert(seen.end(), rows.pixels.begin(), rows.pixels.end());
    seen.insert(seen.end(), rows.body_mask.begin(), rows.body_mask.end());
  };
  driver.reset();
  append();
  for (int count = 0; count < 3; ++count) {
    driver.step({1.0, -1.0, 0.5, 0.0});
    append();
  }
  return seen;
}

}  // namespace

TEST(pictures_are_the_same_on_any_number_of_threads) {
#if defined(__SANITIZE_THREAD__)
  // Mesa is not instrumented and waits by futexes, which TSan does not see as order, so that Mesa's own threads seem to
  // race (pthread_mutex_destroy against llvmpipe's pthread_mutex_lock, both inside its driver).
  std::printf("  not under TSan: nothing drawn\n");
  return;
#endif
  aime::tests::load_library();
  if (aime::gl_displays().empty()) {
    std::printf("  no OpenGL here: nothing drawn\n");
    return;
  }
  CHECK(!aime::probe_gl().empty());
  const std::vector<std::uint8_t> alone = pictures(1);
  CHECK(pictures(2) == alone);
}
