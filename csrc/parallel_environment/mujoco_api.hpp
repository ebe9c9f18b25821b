// The MuJoCo C library, resolved at run time from the library the mujoco wheel has already loaded.
//
// The extension is compiled against the wheel's headers but not linked to its library: the soname carries the full
// version, so a link would tie one build to one patch release. `load_mujoco` resolves every symbol by name and refuses
// a library whose version has other struct layouts than the headers.
#pragma once

#include <mujoco/mujoco.h>

#include <string>

namespace aime {

// Every function of MuJoCo that this extension calls.
#define AIME_MUJOCO_FUNCTIONS(X) \
  X(mj_version)                  \
  X(mj_copyModel)                \
  X(mj_deleteModel)              \
  X(mj_makeData)                 \
  X(mj_copyData)                 \
  X(mj_deleteData)               \
  X(mj_resetData)                \
  X(mj_forward)                  \
  X(mj_forwardSkip)              \
  X(mj_checkAcc)                 \
  X(mj_RungeKutta)               \
  X(mj_kinematics)               \
  X(mj_objectVelocity)           \
  X(mj_step)                     \
  X(mj_step1)                    \
  X(mj_step2)                    \
  X(mj_stateSize)                \
  X(mj_getState)                 \
  X(mj_setState)                 \
  X(mj_name2id)                  \
  X(mjv_defaultCamera)           \
  X(mjv_defaultFreeCamera)       \
  X(mjv_defaultOption)           \
  X(mjv_defaultScene)            \
  X(mjv_makeScene)               \
  X(mjv_freeScene)               \
  X(mjv_updateScene)             \
  X(mjr_defaultContext)          \
  X(mjr_makeContext)             \
  X(mjr_freeContext)             \
  X(mjr_setBuffer)               \
  X(mjr_render)                  \
  X(mjr_readPixels)

struct MujocoApi {
#define AIME_DECLARE(name) decltype(&::name) name = nullptr;
  AIME_MUJOCO_FUNCTIONS(AIME_DECLARE)
#undef AIME_DECLARE
  // Present in every 3.x that has mju_setLogHandler; null in others, where MuJoCo's own handlers stay in place.
  mjfLogHandler (*set_thread_log_handler)(mjfLogHandler) = nullptr;
};

// Resolves all functions from the library at `path`. Returns its version (3017000 = 3.17.0).
// Throws std::runtime_error when the library or a symbol is missing, or when it does not match the headers.
int load_mujoco(const std::string& path);

// The resolved functions. Throws std::logic_error before load_mujoco.
const MujocoApi& mujoco();

// What MuJoCo said during one guarded call.
struct MujocoMessages {
  bool failed = false;     // mju_error was reached
  char error[512] = {};    // its message
  char warning[512] = {};  // the first warning
};

// Runs `operation(argument)` with MuJoCo's errors and warnings of this thread caught: mju_error, which by default
// ends the process, comes back as `failed`. The operation must own nothing with a destructor (an error leaves by
// longjmp, as C code cannot be unwound).
void guarded_call(void (*operation)(void*), void* argument, MujocoMessages& messages);

template <typename Operation>
void guarded(Operation&& operation, MujocoMessages& messages) {
  guarded_call([](void* pointer) { (*static_cast<std::remove_reference_t<Operation>*>(pointer))(); }, &operation,
               messages);
}

// As `guarded`, but an error of MuJoCo becomes a std::runtime_error.
template <typename Operation>
void guarded_or_throw(Operation&& operation, const char* what);

[[noreturn]] void throw_mujoco_error(const char* what, const MujocoMessages& messages);

template <typename Operation>
void guarded_or_throw(Operation&& operation, const char* what) {
  MujocoMessages messages;
  guarded(operation, messages);
  if (messages.failed) throw_mujoco_error(what, messages);
}

}  // namespace aime
