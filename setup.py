"""What pyproject.toml cannot say: kernels/ is the package aime.kernels."""

from setuptools import find_packages, setup

packages = ["aime", *(f"aime.{name}" for name in find_packages("aime")), "aime.kernels", *(f"aime.kernels.{name}" for name in find_packages("kernels"))]

setup(packages=packages, package_dir={"aime": "aime", "aime.kernels": "kernels"})
