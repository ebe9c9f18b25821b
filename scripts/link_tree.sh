#!/bin/sh
# Lay out the package as an installation does, by links: DIRECTORY/aime with kernels/ as its kernels.
# For tools that read the source without an installation: mypy, and machines where nothing can be installed.
# usage: link_tree.sh DIRECTORY
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
rm -rf "$1/aime"
mkdir -p "$1/aime"
for entry in "$root"/aime/*; do
    case $entry in
        */__pycache__) ;;
        *) ln -s "$entry" "$1/aime/" ;;
    esac
done
ln -sfn "$root/kernels" "$1/aime/kernels"
