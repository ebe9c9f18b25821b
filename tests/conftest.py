"""What holds for every test."""

import os
import signal

import torch

# Triton decides when it is imported whether kernels are interpreted, and aime.envs imports it before it draws (its
# LLVM must come before OpenGL's): the choice for tests/kernels has to be made before any test module is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell without job control starts background jobs with SIGINT ignored, and processes inherit that: tests that
# interrupt a child would wait for ever. A handler of our own is not inherited; children start with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
