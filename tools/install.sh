#!/usr/bin/env bash
# Makes the virtual environment $VENV with everything that demo, tests and checks need.
# PyTorch first: on Linux without a GPU the plain package would bring gigabytes of CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH=2.13.0

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "WISP needs Python 3.11 or newer; '$PYTHON' is $("$PYTHON" --version). Try: make demo PYTHON=python3.12" >&2
    exit 1
fi

install_torch() {
    if "$PIP" show torch >/dev/null 2>&1; then return; fi
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        # A local wheel that pip is configured to find, then the PyTorch project's CPU builds.
        "$PIP" install --quiet --no-index --no-deps "torch==$TORCH+cpu" 2>/dev/null && return
        "$PIP" install --quiet --retries 1 --no-deps \
            --index-url https://download.pytorch.org/whl/cpu "torch==$TORCH+cpu" 2>/dev/null && return
    fi
    "$PIP" install --quiet "torch==$TORCH"
}

echo "Installing WISP into $VENV (about 1.4 GB, a minute or two) ..." >&2
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PIP="$VENV/bin/pip"
"$PIP" install --quiet --upgrade 'pip>=25.1'
install_torch
"$PIP" install --quiet "torch==$TORCH"  # its own dependencies
"$PIP" install --quiet --editable '.[all]' --group dev
