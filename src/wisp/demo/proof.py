"""The target's own decoding, to compare with: what the devices got must be the same, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from wisp.types import TokenId


def own_greedy_decoding(
    model: Path, prompts: Sequence[Sequence[TokenId]], max_tokens: int, stop_token_ids: frozenset[TokenId]
) -> list[list[TokenId]]:
    """Outputs of transformers' `generate` in float32, prompt by prompt: it shares no code with the server."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(1)
    target: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    target.eval()
    config = cast("Any", GenerationConfig)(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(stop_token_ids), pad_token_id=0
    )
    outputs = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            output = target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            outputs.append(output[0, len(prompt) :].tolist())
    return outputs
