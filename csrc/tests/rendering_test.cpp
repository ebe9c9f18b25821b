// Pictures: the same on one thread and on several. With OpenGL each thread has a context of its own, made and freed in
// turn; ray casters share what they took from the model (their kernels are plain_raycast_kernel.cpp here).
#include "../parallel_environment/gl_context.hpp"
#include "check.hpp"
#include "driver.hpp"

#include <cstdio>
#include <string>
#include <vector>

namespace {

aime::BatchSettings settings_of(const std::string& domain, const std::string& task) {
  aime::BatchSettings settings;
  settings.domain = domain;
  settings.task = task;
  settings.num_envs = 4;
  settings.step_limit = 2.0;
  settings.frame_stack = 2;
  settings.render.height = 13;
  settings.render.width = 18;
  settings.render.segmentation = true;
  return settings;
}

// All that is drawn in the first steps of four environments.
aime::tests::Bytes pictures(aime::BatchSettings settings, int threads) {
  settings.num_threads = threads;
  aime::tests::Driver driver(settings);
  aime::tests::Bytes seen;
  const auto append = [&] {
    const aime::Rows& rows = driver.results().rows;
    seen.insert(seen.end(), rows.pixels.begin(), rows.pixels.end());
    seen.insert(seen.end(), rows.body_mask.begin(), rows.body_mask.end());
    const auto* ids = reinterpret_cast<const std::uint8_t*>(rows.segmentation.data());
    seen.insert(seen.end(), ids, ids + rows.segmentation.size() * sizeof(rows.segmentation[0]));
  };
  driver.reset();
  append();
  for (int count = 0; count < 3; ++count) {
    driver.step(std::vector<double>(static_cast<std::size_t>(4 * driver.model->nu), 0.3 * count));
    append();
  }
  return seen;
}

}  // namespace

TEST(opengl_draws_the_same_on_any_number_of_threads) {
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
  aime::BatchSettings settings = settings_of("cartpole", "swingup");
  settings.render.quality = aime::Quality::kFast;
  CHECK(pictures(settings, 1) == pictures(settings, 2));
}

TEST(ray_casters_share_a_model_on_any_number_of_threads) {
  aime::tests::load_library();
  const std::pair<const char*, const char*> tasks[] = {
      {"cartpole", "swingup"}, {"reacher", "easy"}, {"walker", "walk"}, {"fish", "swim"}, {"humanoid", "run"}};
  for (const auto& [domain, task] : tasks) {
    aime::BatchSettings settings = settings_of(domain, task);
    settings.render.renderer = aime::RendererKind::kRaycast;
    CHECK(pictures(settings, 1) == pictures(settings, 3));
  }
}
