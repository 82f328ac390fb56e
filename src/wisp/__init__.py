"""WISP: devices draft, one shared server verifies, the output is exactly the target's."""

__version__ = "0.1.0"
