// The beginning of an episode in C++, step by step as dm_control's Environment.reset takes it.
#pragma once

#include "task.hpp"

namespace aime {

// Resets the data, lets the task (one that `initialises()`) draw its episode, and computes what follows from the state.
// The model must carry what the environment's previous episode changed in it; what this one changes lies in
// `task.model_ranges()`. The model's disable flags change in between, so it must belong to this thread.
// Throws std::runtime_error where dm_control raises PhysicsError.
void begin_episode(const Task& task, mjModel* model, mjData* data, RandomState& random);

// physics.after_reset(): mj_forward with actuation disabled. Throws std::runtime_error when MuJoCo warns.
void forward_without_actuation(mjModel* model, mjData* data);

// physics.step(count): `count` physics steps, positions and velocities up to date afterwards, before and between.
// Throws std::runtime_error when MuJoCo warns.
void physics_steps(const mjModel* model, mjData* data, int count);

// dm_control.suite.utils.randomizers, for models whose joints are hinges and slides. (Free and ball joints are
// normalised by BLAS there, whose last bit depends on the processor; such tasks are initialised by dm_control.)
void randomize_limited_and_rotational_joints(const mjModel* model, mjData* data, RandomState& random);

// Draws joint angles until nothing touches. Throws std::runtime_error after `max_attempts`.
void randomize_until_free(mjModel* model, mjData* data, RandomState& random, int max_attempts);

}  // namespace aime
