"""The wire format between edge and server, and its version."""

PROTOCOL_VERSION = 1
"""Raised with every change that an older peer would misread."""

MAX_FRAME_BYTES = 4 << 20
"""Larger frames are refused by both ends; a history of a million tokens fits."""

MAX_DRAFT_TOKENS = 64
"""Per round; a server may allow fewer."""

TOKEN_METADATA_KEY = "authorization"  # noqa: S105 - the name of a header
"""gRPC metadata that carries `Bearer <token>`."""
