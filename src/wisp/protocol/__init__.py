"""The wire format between edge and server, and its version."""
