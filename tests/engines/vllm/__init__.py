"""Tests that need vLLM; `make test-vllm` installs it and runs them."""

import pytest

from wisp.engines.vllm import versions

needs_vllm = pytest.mark.skipif(
    versions.installed() is None, reason="vLLM is not installed: `make test-vllm` runs these"
)
