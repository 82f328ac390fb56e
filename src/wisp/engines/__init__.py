"""The models: tokens in, verdicts out."""
