"""Hardware models: rooflines beside measured kernels, profiles, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wisp.errors import ConfigError, FormatError
from wisp.policy.batch_time import BatchShape
from wisp.sim.hardware import GPUS, MODELS, ModelShape, Roofline, beside

MEASURED_LAYER = {1: 670e-6, 64: 744e-6, 128: 821e-6, 512: 1499e-6, 2048: 5397e-6}
"""Seconds of one layer's dense kernels of Qwen3-32B on an RTX PRO 6000 by tokens: LLMServingSim, commit 5daddb2."""


@pytest.mark.parametrize(("num_tokens", "seconds"), MEASURED_LAYER.items())
def test_the_roofline_is_close_to_measured_kernels(num_tokens: int, seconds: float) -> None:
    """Within 10 % from 1 to 2,048 tokens; the head is measured apart, at 1.1 ms."""
    roofline = Roofline(GPUS["rtx-pro-6000"], MODELS["qwen3-32b"])
    assert roofline.matmul_time(num_tokens) == pytest.approx(64 * seconds + 1.1e-3, rel=0.10)


def test_attention_of_a_roofline_is_close_to_measured_kernels() -> None:
    """Decoding 64 sequences of 4,096 tokens, and 512 tokens of a prompt behind 4,096."""
    roofline = Roofline(GPUS["rtx-pro-6000"], MODELS["qwen3-32b"])
    assert roofline.attention_time(64 * 4096, 64 * 4096) == pytest.approx(64 * 750e-6, rel=0.1)
    assert roofline.attention_time(4096, 512 * (4096 + 256)) == pytest.approx(64 * 285e-6, rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_have_the_size_that_is_in_their_name(name: str) -> None:
    """The embedding added, unless it is the head's transpose."""
    shape = MODELS[name]
    billions = float(name.rsplit("-", maxsplit=1)[-1].removesuffix("b"))
    embedding = 0 if shape.tied else shape.vocabulary_size * shape.hidden_size
    assert (shape.num_matmul_parameters + embedding) / 1e9 == pytest.approx(billions, rel=0.06)


def test_a_tied_head_lies_in_memory_once() -> None:
    """As the configuration says."""
    keys = {"num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
    keys |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    assert ModelShape.from_config({**keys, "tie_word_embeddings": True}) == MODELS["qwen3-0.6b"]
    apart = Roofline(GPUS["l40s"], ModelShape.from_config(keys))
    assert apart.weight_bytes - Roofline(GPUS["l40s"], MODELS["qwen3-0.6b"]).weight_bytes == 2 * 151936 * 1024


def test_a_batch_costs_what_its_parts_cost() -> None:
    """Fixed and per-request time, matmuls of all positions, attention of all caches."""
    roofline = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"], fixed_s=0.005, per_request_s=20e-6)
    expected = 0.00504 + roofline.matmul_time(5) + roofline.attention_time(3000, 1.0)
    assert roofline(BatchShape.of_members([(1, 1000), (4, 2000)])) == pytest.approx(expected)


def test_a_drafter_beside_the_target_takes_of_its_cache() -> None:
    """Its weights at once, its caches as they are used: 112 KiB per token beside the target's 256."""
    target = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])
    drafter = beside(target, MODELS["qwen3-0.6b"])
    taken = Roofline(GPUS["a100-80gb"], MODELS["qwen3-0.6b"]).weight_bytes / target.model.kv_bytes_per_token
    assert target.kv_capacity_tokens - drafter.kv_capacity_tokens == int(taken)
    assert drafter.kv_share == 112 / 256
    assert beside(target, MODELS["qwen3-0.6b"], 10_000).kv_capacity_tokens == 10_000 - int(taken)


def test_models_that_do_not_fit_are_refused() -> None:
    """With what to do; fewer bits make room."""
    with pytest.raises(ConfigError, match="fewer weight bits"):
        Roofline(GPUS["a100-80gb"], MODELS["llama-3.1-70b"])
    quantized = Roofline(GPUS["a100-80gb"], MODELS["llama-3.1-70b"], weight_bits=4)
    assert 100_000 < quantized.kv_capacity_tokens < 150_000
    with pytest.raises(ConfigError, match="4, 8 or 16"):
        Roofline(GPUS["a100-80gb"], MODELS["qwen3-8b"], weight_bits=5)


def test_shapes_are_read_from_config_json(tmp_path: Path) -> None:
    """Of dense decoders; others are refused."""
    path = tmp_path / "config.json"
    config = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    path.write_text(json.dumps(config))
    assert ModelShape.load(path) == MODELS["llama-3.1-8b"]
    path.write_text("{}")
    with pytest.raises(FormatError, match=r"not the config\.json of a dense decoder"):
        ModelShape.load(path)
    with pytest.raises(FormatError, match="cannot read"):
        ModelShape.load(tmp_path / "missing.json")
