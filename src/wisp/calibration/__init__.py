"""Measures a target engine over a sweep of batch shapes and fits how long its batches take."""
