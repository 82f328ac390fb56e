"""What is written to disk: calibrations, traces, predictors; and prompts that are read."""
