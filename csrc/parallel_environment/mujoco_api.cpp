#include "mujoco_api.hpp"

#include <dlfcn.h>

#include <csetjmp>
#include <cstring>
#include <stdexcept>

namespace aime {
namespace {

MujocoApi api;
bool loaded = false;

thread_local std::jmp_buf* error_target = nullptr;
thread_local MujocoMessages* current_messages = nullptr;

void copy_text(char (&target)[512], const char* source) {
  const std::size_t length = strnlen(source, sizeof(target) - 1);
  std::memcpy(target, source, length);
  target[length] = '\0';
}

void on_message(const mjLogMessage* message) {
  if (current_messages == nullptr) return;
  if (message->level == mjLOG_WARNING && current_messages->warning[0] == '\0') {
    copy_text(current_messages->warning, message->subject);
  }
  if (message->level == mjLOG_ERROR) {
    copy_text(current_messages->error, message->subject);
    current_messages->failed = true;
    if (error_target != nullptr) std::longjmp(*error_target, 1);
  }
}

template <typename Function>
void resolve(void* library, const char* name, const std::string& path, Function& target) {
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) throw std::runtime_error("'" + path + "' has no function " + name);
  std::memcpy(&target, &symbol, sizeof(symbol));
}

std::string version_text(int version) {
  return std::to_string(version / 1000000) + "." + std::to_string(version / 1000 % 1000) + "." +
         std::to_string(version % 1000);
}

}  // namespace

int load_mujoco(const std::string& path) {
  // RTLD_NOLOAD first: `import mujoco` has loaded it, and a second copy would have its own global state.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) library = dlopen(path.c_str(), RTLD_NOW);
  if (library == nullptr) throw std::runtime_error(std::string("cannot load MuJoCo: ") + dlerror());

  MujocoApi found;
  resolve(library, "mj_version", path, found.mj_version);
  const int version = found.mj_version();
  // Patch releases keep the struct layouts; minor ones do not promise to.
  if (version / 1000 != mjVERSION_HEADER / 1000) {
    throw std::runtime_error("built for MuJoCo " + version_text(mjVERSION_HEADER) + ", but version " +
                             version_text(version) + " is installed");
  }
#define AIME_RESOLVE(name) resolve(library, #name, path, found.name);
  AIME_MUJOCO_FUNCTIONS(AIME_RESOLVE)
#undef AIME_RESOLVE
  void* handler = dlsym(library, "_mjPRIVATE_setTlsLogHandler");
  std::memcpy(&found.set_thread_log_handler, &handler, sizeof(handler));
  api = found;
  loaded = true;
  return version;
}

const MujocoApi& mujoco() {
  if (!loaded) throw std::logic_error("load_mujoco must come first");
  return api;
}

void guarded_call(void (*operation)(void*), void* argument, MujocoMessages& messages) {
  std::jmp_buf target;
  std::jmp_buf* const outer_target = error_target;
  MujocoMessages* const outer_messages = current_messages;
  const mjfLogHandler outer_handler =
      api.set_thread_log_handler != nullptr ? api.set_thread_log_handler(&on_message) : nullptr;
  error_target = &target;
  current_messages = &messages;
  if (setjmp(target) == 0) operation(argument);
  error_target = outer_target;
  current_messages = outer_messages;
  if (api.set_thread_log_handler != nullptr) api.set_thread_log_handler(outer_handler);
}

void throw_mujoco_error(const char* what, const MujocoMessages& messages) {
  throw std::runtime_error(std::string(what) + ": " + messages.error);
}

}  // namespace aime
