// An offscreen OpenGL context, without GL headers or a GL library at build time.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace aime {

// A context that belongs to the thread that made it current. Not movable between threads.
class GlContext {
 public:
  virtual ~GlContext() = default;
  virtual void make_current() = 0;
  // Leaves the thread without a current context; call before destruction, on the thread that made it current.
  virtual void release() = 0;
  virtual std::string description() const = 0;
};

// Makes a context for worker `index`. Software EGL (llvmpipe) takes one lock per display, so consecutive workers get
// different displays as long as there are any (the Mesa device display and the surfaceless one); a GPU has one.
// MUJOCO_GL = egl | osmesa fixes the library; MUJOCO_EGL_DEVICE_ID the device. Throws std::runtime_error with what was
// tried. The caller holds gl_mutex().
std::unique_ptr<GlContext> make_gl_context(int index);

// Contexts are made and destroyed under this lock, one at a time: MuJoCo's loader of GL functions is process-wide, and
// Mesa's initialisation is not safe from two threads.
std::mutex& gl_mutex();

// Makes a context and drops it again; returns its description or throws what make_gl_context does.
std::string probe_gl();

// What make_gl_context would choose among, for reports: e.g. {"EGL device 0 (software)", "EGL surfaceless (software)"}.
std::vector<std::string> gl_displays();

}  // namespace aime
