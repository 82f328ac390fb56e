"""The decisions of the paper: no clock, no I/O, no framework."""
