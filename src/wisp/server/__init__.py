"""The verification server: one event loop for the wire, one thread for the engine."""
