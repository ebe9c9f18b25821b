// Draws MuJoCo's abstract scene by casting rays: no OpenGL, no allocation per frame, any number of threads.
#pragma once

#include "kernel.hpp"

#include <memory>
#include <string>
#include <vector>

namespace aime::raycaster {

class Raycaster {
 public:
  // `capacity` bounds the geoms of a scene. Throws std::invalid_argument for a number of samples other than 1, 2, 4, 8,
  // or where find_kernel does.
  Raycaster(std::shared_ptr<const Assets> assets, int height, int width, int samples, const std::string& instructions,
            int capacity);

  // Throws std::runtime_error for something in the scene that cannot be drawn.
  void draw(const mjvScene& scene, const Output& output);

  const char* instructions() const { return kernel_.name; }

 private:
  std::shared_ptr<const Assets> assets_;
  const Kernel& kernel_;
  Frame frame_;
  std::vector<int> lists_;
  std::vector<int> geom_of_solid_;
};

// Fills `frame` (its size, samples and assets are set) from MuJoCo's scene; `geom_of_solid` is room with its capacity.
void make_frame(const mjvScene& scene, Frame& frame, std::vector<int>& geom_of_solid);

}  // namespace aime::raycaster
