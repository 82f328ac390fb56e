"""The OpenAI-compatible endpoint: requests in, responses and event streams out."""
