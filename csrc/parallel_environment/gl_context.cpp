#include "gl_context.hpp"

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <thread>
#include <utility>

namespace aime {
namespace {

// The few declarations of EGL 1.5 and OSMesa that are used, so that no GL header is needed to build.
using EglBoolean = unsigned int;
using EglInt = std::int32_t;
using EglDisplay = void*;
using EglConfig = void*;
using EglHandle = void*;
using EglDevice = void*;

constexpr EglInt kAlphaSize = 0x3021, kBlueSize = 0x3022, kGreenSize = 0x3023, kRedSize = 0x3024;
constexpr EglInt kDepthSize = 0x3025, kStencilSize = 0x3026, kSurfaceType = 0x3033, kNone = 0x3038;
constexpr EglInt kColorBufferType = 0x303F, kRenderableType = 0x3040, kExtensions = 0x3055, kRgbBuffer = 0x308E;
constexpr EglInt kPbufferBit = 1, kOpenglBit = 8;
constexpr unsigned kOpenglApi = 0x30A2, kPlatformDevice = 0x313F, kPlatformSurfaceless = 0x31DD;

struct Display {
  EglDisplay handle = nullptr;
  std::string name;
  bool software = false;
};

// Loads one library globally: MuJoCo looks for eglGetProcAddress / OSMesaGetProcAddress among the global symbols.
void* open_library(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL)) return library;
  }
  return nullptr;
}

template <typename Function>
Function symbol(void* library, const char* name) {
  void* address = dlsym(library, name);
  if (address == nullptr) throw std::runtime_error(std::string("no function ") + name);
  Function function;
  std::memcpy(&function, &address, sizeof(address));
  return function;
}

class Egl {
 public:
  static Egl& instance() {
    static Egl egl;
    return egl;
  }

  const std::vector<Display>& displays() const { return displays_; }
  const std::string& failure() const { return failure_; }

  EglBoolean (*choose_config)(EglDisplay, const EglInt*, EglConfig*, EglInt, EglInt*) = nullptr;
  EglHandle (*create_context)(EglDisplay, EglConfig, EglHandle, const EglInt*) = nullptr;
  EglBoolean (*destroy_context)(EglDisplay, EglHandle) = nullptr;
  EglBoolean (*make_current)(EglDisplay, EglHandle, EglHandle, EglHandle) = nullptr;
  EglBoolean (*bind_api)(unsigned) = nullptr;
  EglBoolean (*release_thread)() = nullptr;
  EglInt (*get_error)() = nullptr;

 private:
  using QueryDevices = EglBoolean (*)(EglInt, EglDevice*, EglInt*);
  using QueryDeviceString = const char* (*)(EglDevice, EglInt);
  using PlatformDisplay = EglDisplay (*)(unsigned, void*, const EglInt*);
  using ProcAddress = void* (*)(const char*);

  Egl() {
    void* library = open_library({"libEGL.so.1", "libEGL.so"});
    if (library == nullptr) {
      failure_ = "libEGL.so.1 is not installed";
      return;
    }
    try {
      choose_config = symbol<decltype(choose_config)>(library, "eglChooseConfig");
      create_context = symbol<decltype(create_context)>(library, "eglCreateContext");
      destroy_context = symbol<decltype(destroy_context)>(library, "eglDestroyContext");
      make_current = symbol<decltype(make_current)>(library, "eglMakeCurrent");
      bind_api = symbol<decltype(bind_api)>(library, "eglBindAPI");
      release_thread = symbol<decltype(release_thread)>(library, "eglReleaseThread");
      get_error = symbol<decltype(get_error)>(library, "eglGetError");
      initialize_ = symbol<decltype(initialize_)>(library, "eglInitialize");
      get_proc_address_ = symbol<ProcAddress>(library, "eglGetProcAddress");
      find_displays();
    } catch (const std::runtime_error& error) {
      failure_ = std::string("libEGL: ") + error.what();
    }
  }

  template <typename Function>
  Function extension(const char* name) const {
    void* address = get_proc_address_(name);
    Function function;
    std::memcpy(&function, &address, sizeof(address));
    return function;
  }

  void add(EglDisplay handle, std::string name, bool software) {
    if (handle == nullptr || initialize_(handle, nullptr, nullptr) == 0) return;
    displays_.push_back({handle, std::move(name), software});
  }

  void find_displays() {
    const auto query_devices = extension<QueryDevices>("eglQueryDevicesEXT");
    const auto device_string = extension<QueryDeviceString>("eglQueryDeviceStringEXT");
    const auto platform_display = extension<PlatformDisplay>("eglGetPlatformDisplayEXT");
    if (platform_display == nullptr) {
      failure_ = "this libEGL lacks eglGetPlatformDisplayEXT (EGL_EXT_platform_base)";
      return;
    }
    EglDevice devices[16] = {};
    EglInt count = 0;
    if (query_devices == nullptr || query_devices(16, devices, &count) == 0) count = 0;
    EglInt first = 0;
    const char* chosen = std::getenv("MUJOCO_EGL_DEVICE_ID");
    if (chosen != nullptr && *chosen != '\0') {
      char* end = nullptr;
      const long wanted = std::strtol(chosen, &end, 10);
      if (*end != '\0' || wanted < 0 || wanted >= count) {
        failure_ = "MUJOCO_EGL_DEVICE_ID is '" + std::string(chosen) + "', but there are " + std::to_string(count) +
                   " EGL devices, numbered from 0";
        return;
      }
      first = static_cast<EglInt>(wanted);
      count = first + 1;
    }
    bool hardware = false;
    for (EglInt index = first; index < count; ++index) {
      const char* extensions = device_string != nullptr ? device_string(devices[index], kExtensions) : nullptr;
      const bool software = extensions != nullptr && std::strstr(extensions, "software") != nullptr;
      add(platform_display(kPlatformDevice, devices[index], nullptr),
          "EGL device " + std::to_string(index) + (software ? " (software)" : ""), software);
      hardware = hardware || (!displays_.empty() && !displays_.back().software);
    }
    // Rendering on a GPU and on the CPU in one batch would mix two drivers' pixels: with a GPU, the GPU alone.
    if (hardware) {
      std::vector<Display> kept;
      for (const Display& display : displays_) {
        if (!display.software && kept.empty()) kept.push_back(display);
      }
      displays_ = std::move(kept);
    } else if (chosen == nullptr || *chosen == '\0') {
      add(platform_display(kPlatformSurfaceless, nullptr, nullptr), "EGL surfaceless (software)", true);
    }
    if (displays_.empty()) failure_ = "libEGL is there, but no display of it can be initialised (no Mesa driver?)";
  }

  EglBoolean (*initialize_)(EglDisplay, EglInt*, EglInt*) = nullptr;
  ProcAddress get_proc_address_ = nullptr;
  std::vector<Display> displays_;
  std::string failure_;
};

class EglContext final : public GlContext {
 public:
  EglContext(Egl& egl, const Display& display) : egl_(egl), display_(display) {
    const EglInt attributes[] = {
        kRedSize,        8,          kGreenSize,   8, kBlueSize,        8,          kAlphaSize,   8,
        kDepthSize,      24,         kStencilSize, 8, kColorBufferType, kRgbBuffer, kSurfaceType, kPbufferBit,
        kRenderableType, kOpenglBit, kNone};
    EglConfig config = nullptr;
    EglInt count = 0;
    if (egl_.choose_config(display_.handle, attributes, &config, 1, &count) == 0 || count < 1) {
      throw std::runtime_error(display_.name + ": no RGBA8 configuration with desktop OpenGL");
    }
    egl_.bind_api(kOpenglApi);
    context_ = egl_.create_context(display_.handle, config, nullptr, nullptr);
    if (context_ == nullptr) {
      throw std::runtime_error(display_.name + ": eglCreateContext failed with error " +
                               std::to_string(egl_.get_error()));
    }
  }

  ~EglContext() override { egl_.destroy_context(display_.handle, context_); }

  void make_current() override {
    egl_.bind_api(kOpenglApi);
    if (egl_.make_current(display_.handle, nullptr, nullptr, context_) == 0) {
      throw std::runtime_error(display_.name + ": eglMakeCurrent failed with error " +
                               std::to_string(egl_.get_error()));
    }
  }

  void release() override {
    egl_.make_current(display_.handle, nullptr, nullptr, nullptr);
    egl_.release_thread();
  }

  std::string description() const override { return display_.name; }

 private:
  Egl& egl_;
  Display display_;
  EglHandle context_ = nullptr;
};

class OsMesa {
 public:
  static OsMesa& instance() {
    static OsMesa osmesa;
    return osmesa;
  }
  const std::string& failure() const { return failure_; }

  void* (*create_context)(unsigned, EglInt, EglInt, EglInt, void*) = nullptr;
  unsigned char (*make_current)(void*, void*, unsigned, EglInt, EglInt) = nullptr;
  void (*destroy_context)(void*) = nullptr;

 private:
  OsMesa() {
    void* library = open_library({"libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"});
    if (library == nullptr) {
      failure_ = "libOSMesa is not installed";
      return;
    }
    try {
      create_context = symbol<decltype(create_context)>(library, "OSMesaCreateContextExt");
      make_current = symbol<decltype(make_current)>(library, "OSMesaMakeCurrent");
      destroy_context = symbol<decltype(destroy_context)>(library, "OSMesaDestroyContext");
    } catch (const std::runtime_error& error) {
      failure_ = std::string("libOSMesa: ") + error.what();
    }
  }

  std::string failure_;
};

class OsMesaContext final : public GlContext {
 public:
  explicit OsMesaContext(OsMesa& osmesa) : osmesa_(osmesa), buffer_(4) {
    constexpr unsigned kRgba = 0x1908;
    context_ = osmesa_.create_context(kRgba, 24, 8, 0, nullptr);
    if (context_ == nullptr) throw std::runtime_error("OSMesaCreateContextExt failed");
  }
  ~OsMesaContext() override { osmesa_.destroy_context(context_); }

  void make_current() override {
    constexpr unsigned kUnsignedByte = 0x1401;
    // MuJoCo draws to its own framebuffer object, so the window buffer may be one pixel.
    if (osmesa_.make_current(context_, buffer_.data(), kUnsignedByte, 1, 1) == 0) {
      throw std::runtime_error("OSMesaMakeCurrent failed");
    }
  }
  void release() override { osmesa_.make_current(nullptr, nullptr, 0, 0, 0); }
  std::string description() const override { return "OSMesa (software)"; }

 private:
  OsMesa& osmesa_;
  void* context_ = nullptr;
  std::vector<unsigned char> buffer_;
};

std::string requested_library() {
  const char* value = std::getenv("MUJOCO_GL");
  const std::string name = value != nullptr ? value : "";
  return name == "egl" || name == "osmesa" ? name : "";
}

}  // namespace

std::unique_ptr<GlContext> make_gl_context(int index) {
  const std::string requested = requested_library();
  std::string tried;
  if (requested != "osmesa") {
    Egl& egl = Egl::instance();
    if (!egl.displays().empty()) {
      const std::size_t count = egl.displays().size();
      return std::make_unique<EglContext>(egl, egl.displays()[static_cast<std::size_t>(index) % count]);
    }
    tried = egl.failure();
  }
  if (requested != "egl") {
    OsMesa& osmesa = OsMesa::instance();
    if (osmesa.failure().empty()) return std::make_unique<OsMesaContext>(osmesa);
    tried += (tried.empty() ? "" : "; ") + osmesa.failure();
  }
  throw std::runtime_error("no offscreen OpenGL (" + tried +
                           "). Mesa's software renderer is enough: apt-get install libegl1 libgl1-mesa-dri");
}

std::string probe_gl() {
  std::string description;
  std::exception_ptr failure;
  // On a thread of its own, so that the caller's current context stays.
  std::thread([&] {
    try {
      const std::lock_guard<std::mutex> lock(gl_mutex());
      const std::unique_ptr<GlContext> context = make_gl_context(0);
      context->make_current();
      description = context->description();
      context->release();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
  return description;
}

std::mutex& gl_mutex() {
  static std::mutex mutex;
  return mutex;
}

std::vector<std::string> gl_displays() {
  std::vector<std::string> names;
  const std::string requested = requested_library();
  if (requested != "osmesa") {
    for (const Display& display : Egl::instance().displays()) names.push_back(display.name);
  }
  if (names.empty() && requested != "egl" && OsMesa::instance().failure().empty()) {
    names.emplace_back("OSMesa (software)");
  }
  return names;
}

}  // namespace aime
