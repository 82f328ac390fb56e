"""`wisp demo`: a server, emulated devices, and proof that every text is the target's own."""
