"""Any supported Hugging Face causal LM on one machine: packed ragged batches over a persistent KV cache."""
