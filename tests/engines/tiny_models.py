"""Random models of many architectures, small enough for a test, and a tokenizer for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from wisp.engines.packed import memory
from wisp.engines.packed.loading import LoadedModel, LoadOptions, prepare

torch.set_num_threads(1)  # on shared cores two are many times slower

VOCABULARY_SIZE = 96
CONTEXT = 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_HEADS: dict[str, Any] = {**_COMMON, "head_dim": 16}
_SLIDING: list[str] = ["sliding_attention", "full_attention", "sliding_attention"]
_GPT: dict[str, Any] = {"vocab_size": VOCABULARY_SIZE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "qwen2": ("Qwen2Config", _COMMON),
    "qwen3": ("Qwen3Config", _HEADS),
    "mistral": ("MistralConfig", {**_HEADS, "sliding_window": 24}),
    "gemma2": (
        "Gemma2Config",
        {**_HEADS, "sliding_window": 20, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": ("Gemma3TextConfig", {**_HEADS, "sliding_window": 20, "layer_types": _SLIDING}),
    "phi3": ("Phi3Config", {**_COMMON, "sliding_window": 28}),
    "olmo2": ("Olmo2Config", _COMMON),
    "cohere2": ("Cohere2Config", {**_HEADS, "sliding_window": 20, "layer_types": _SLIDING}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            **_HEADS,
            "sliding_window": 20,
            "layer_types": _SLIDING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "nemotron": ("NemotronConfig", _COMMON),
    "gpt2": ("GPT2Config", {**_GPT, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
}
"""Architectures that must be exact: configuration class and its arguments."""

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": (
        "FalconConfig",
        {**_GPT, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "alibi": False},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **_HEADS,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "lfm2": ("Lfm2Config", {**_COMMON, "layer_types": ["conv", "full_attention", "conv"]}),
    "doge": ("DogeConfig", _COMMON),
    "diffllama": ("DiffLlamaConfig", _COMMON),
    "bamba": (
        "BambaConfig",
        {**_COMMON, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16},
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            **_HEADS,
            "num_local_experts": 2,
            "attention_chunk_size": 32,
            "intermediate_size_mlp": 96,
            "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
        },
    ),
}
"""Architectures that packed batches get wrong without saying so."""


def config(name: str, **changes: Any) -> Any:
    """The configuration of one of the tiny models, with other arguments where `changes` has them."""
    class_name, arguments = {**CONFIGS, **REFUSED}[name]
    return getattr(transformers, class_name)(**copy.deepcopy({**arguments, **changes}))


def model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32 that attends eagerly; its weights are large, so that no two logits are nearly tied."""
    torch.manual_seed(seed)
    made: Any = transformers.AutoModelForCausalLM.from_config(config(name, **changes), attn_implementation="eager")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2.0 * parameter.shape[-1] ** -0.5)
    made.generation_config.eos_token_id = None
    return made.eval()


def loaded(name: str, kv_tokens: int = 4096, seed: int = 0, **options: Any) -> LoadedModel:
    """A tiny model behind the packed engine, with a KV pool of `kv_tokens`."""
    made = model(name, seed)
    chosen = LoadOptions(**options)
    text = made.config.get_text_config()
    per_token = memory.expected_geometry(text, torch.float32).bytes_per_token
    packed = prepare(made, VOCABULARY_SIZE, CONTEXT, kv_tokens * per_token, chosen)
    return LoadedModel(name, packed, tokenizer(), tokenizer_json().encode(), VOCABULARY_SIZE, CONTEXT)


def generate(plain: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The model's own greedy continuation."""
    ids = torch.tensor([list(prompt)])
    output = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


def prompt(rng: np.random.Generator, length: int) -> tuple[int, ...]:
    """Random token ids."""
    return tuple(rng.integers(2, VOCABULARY_SIZE, length).tolist())


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()), pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def save(folder: Path, name: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A checkpoint of a tiny model with its tokenizer, as one finds it on the hub."""
    made = model(name, seed, **changes)
    made.generation_config.eos_token_id = [1, 2]
    made.generation_config.repetition_penalty = 1.1
    made.save_pretrained(folder)
    with_template = tokenizer()
    with_template.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with_template.save_pretrained(folder)
    return folder


@cache
def tokenizer_json() -> str:
    """A BPE tokenizer of VOCABULARY_SIZE tokens over lower-case letters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "<eos>", "<unk>"],
        show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
    )
    text = "a tiny tokenizer for tiny models says tiny things about tiny tokens and many other small words " * 3
    tokenizer.train_from_iterator(
        [text, "the quick brown fox jumps over the lazy dog while it thinks of others"], trainer
    )
    return tokenizer.to_str()
