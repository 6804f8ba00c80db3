#!/usr/bin/env bash
# check.sh FOLDER [CALLS]: compiles the portable kernels for aarch64 and sends them the fuzzer's first calls in an emulator.
# On Debian, as root, with g++-aarch64-linux-gnu, qemu-user and debootstrap; $PYTHON has uv and what builds the package.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(realpath -m "$1")
python=${PYTHON:-python3} root=$folder/root site=$folder/site

if [ ! -e "$root/usr/bin/python3.11" ]; then
  # The second stage would run in the emulator; a Python needs its files alone.
  debootstrap --arch=arm64 --foreign --variant=minbase --include=python3 bookworm "$root"
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi
if [ ! -e "$site/torch" ]; then
  "$python" -m uv pip install -q --python-platform aarch64-manylinux_2_28 --python-version 3.11 --only-binary :all: \
    --target "$site" torch==2.10.0 numpy transformers pytest hypothesis
fi

export PYTHONPATH=$site
_PYTHON_HOST_PLATFORM=linux-aarch64 CXX=aarch64-linux-gnu-g++ \
  SPANBERT_KERNELS_BUILD=1 SPANBERT_KERNELS_HOST=0 SPANBERT_KERNELS_CUDA=0 \
  "$python" setup.py -q build_ext --build-lib "$folder" --build-temp "$folder/objects"
SPANBERT_KERNELS_LIBRARIES=$folder/spanbert_kernels/_lib OMP_NUM_THREADS=1 \
  qemu-aarch64 -L "$root" "$root/usr/bin/python3.11" tests/fuzz/run.py --first 0 --calls "${2:-40}" --seconds inf
