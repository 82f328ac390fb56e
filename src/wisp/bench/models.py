"""A random model of a size that the demo pair has not: costs do not depend on what the weights say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from wisp.demo.pair import TARGET


def save_random_llama(folder: Path) -> Path:
    """Write a Llama of about 88 million parameters with the demo pair's tokenizer."""
    tokenizer: Any = cast("Any", AutoTokenizer).from_pretrained(TARGET)
    config = cast("Any", LlamaConfig)(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=13,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model: Any = cast("Any", LlamaForCausalLM)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
