"""What is written to disk: profiles of hardware, and later traces and predictors."""
