"""`make bench-vllm`: WISP's engine on vLLM beside vLLM by itself, and beside WISP's engine on transformers."""
