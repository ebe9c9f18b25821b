"""What holds for every test."""

import os

import torch

# Triton decides when it is imported whether kernels are interpreted, and aime.envs imports it before it draws (its
# LLVM must come before OpenGL's): the choice for tests/kernels has to be made before any test module is.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
