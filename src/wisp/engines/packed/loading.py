"""From a path or hub name to a checked PackedModel, its tokenizer and what its generation config says."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from wisp.config import ModelConfig
from wisp.engines import card, vocabulary
from wisp.engines.packed import invariance, memory, selfcheck, varlen
from wisp.engines.packed.batch import RaggedBatch, Segment, pack
from wisp.engines.packed.kv import KVGeometry, KVPool, KVSequence, LayerGeometry
from wisp.engines.packed.model import PackedModel, adopt
from wisp.engines.packed.paged import PagedPool
from wisp.engines.packed.rows import pad_few_rows
from wisp.engines.packed.slabs import SlabPool
from wisp.errors import ConfigError, EngineError, ModelError, UnsupportedModel
from wisp.logs import logger

log = logger(__name__)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DEFAULT_CONTEXT = 4096
_SPARE_TOKENS = 1024
"""Of the pool that the self-check uses: for wrong tokens and half-empty pages."""
_VARLEN_TOLERANCE = 2.0
"""The batch kernel may be so much further from the plain logits than the per-sequence attention is."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model and how much of the machine it may take."""

    dtype: str = "auto"
    """float32, float16, bfloat16; auto: float32 on a CPU, where verification is token-identical to the model's own
    greedy decoding, and the checkpoint's own on CUDA."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto: CUDA where there is one."""
    threads: int = 1
    """Of torch, on a CPU: more than one is many times slower where cores are shared."""
    memory_gib: float | None = None
    """For weights and KV cache; None: what is free."""
    kv_gib: float | None = None
    """For the KV cache; None: derived from what the weights leave."""
    max_context: int | None = None
    """Cap on the model's own context length, tokens."""
    max_sequences: int = 512
    """How many sequences can be cached at a time (CPU)."""
    batch_invariant: bool = False
    """Compute every row with the same rounding however the batch is made up: in bf16 a verified token is then the one
    that one-token decoding gives. Costs 1.2 to 1.5 times the step on a small model (more where weights don't fit the
    processor's cache, since they are read once per 16 rows)."""
    kv_layout: str = "auto"
    """slabs, paged; auto: slabs on a CPU, paged elsewhere."""
    name: str | None = None
    """What the model is called; None: its hub name, or its folder's own name."""

    @classmethod
    def of(cls, config: ModelConfig) -> LoadOptions:
        """What a server or a device is configured to load."""
        return cls(
            dtype=config.dtype,
            device=config.device,
            threads=config.threads,
            memory_gib=config.memory_gib,
            kv_gib=config.kv_gib,
            max_context=config.max_context,
            batch_invariant=config.batch_invariant,
            name=config.name,
        )


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that passed its self-check, and what belongs to it."""

    model_id: str
    packed: PackedModel
    tokenizer: Any
    tokenizer_json: bytes
    vocabulary_size: int
    context_length: int


DEFAULTS = LoadOptions()


def load(model_id: str, options: LoadOptions = DEFAULTS) -> LoadedModel:
    """Load a causal LM with its tokenizer, from a folder or the hub, and check it.

    Raises ModelError when it cannot be found or has no fast tokenizer, ModelTooLarge before the weights are loaded when
    they and a minimal KV cache exceed the memory, UnsupportedModel when packed verification does not reproduce it.
    """
    from transformers import AutoConfig, AutoTokenizer

    if not sys.stderr.isatty():
        without_loading_bars()
    device = _device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    check_source(model_id)
    try:
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"the model {model_id!r} cannot be loaded: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more special
        raise ModelError(f"the tokenizer of {model_id!r} (tokenizer.json) cannot be loaded: {error}") from error
    selfcheck.check_configuration(config)
    dtype = _dtype(options.dtype, config, device)
    context_length = _context_length(config, options.max_context)
    budget = memory.plan(
        config,
        dtype,
        device,
        context_length,
        max_sequences=options.max_sequences,
        kv_gib=options.kv_gib,
        memory_gib=options.memory_gib,
    )
    tokenizer_json = card.tokenizer_json(tokenizer, model_id)
    model = _weights(model_id, dtype).to(device)
    size = _vocabulary_size(tokenizer_json, model)
    packed = prepare(model, size, context_length, budget.kv, options)
    name = options.name or own_name(model_id)
    return LoadedModel(name, packed, tokenizer, tokenizer_json, size, context_length)


def prepare(model: Any, vocabulary_size: int, context_length: int, kv_bytes: int, options: LoadOptions) -> PackedModel:
    """Give a loaded transformers model a KV pool of `kv_bytes` and check it; raises UnsupportedModel."""
    selfcheck.check_configuration(model.config)
    model.eval()
    expected = selfcheck.reference(model, vocabulary_size, context_length)
    try:
        adopt(model)
        geometry = probe(model)
    except (EngineError, AttributeError, NotImplementedError, ValueError) as error:
        raise UnsupportedModel(f"{selfcheck.name(model)} is not supported: {error}") from error
    if options.batch_invariant:
        invariance.pad_products(model)
    else:
        pad_few_rows(model)
    trial = PackedModel(
        model,
        _pool(geometry, model.device, context_length, expected.num_tokens + _SPARE_TOKENS, options),
        batch_invariant=options.batch_invariant,
    )
    selfcheck.check(trial, expected)
    by_batch = not options.batch_invariant and varlen.usable(geometry, model.device) and _varlen_agrees(trial, expected)
    pool = _pool(geometry, model.device, context_length, kv_bytes // geometry.bytes_per_token, options)
    attention = varlen.paged_attention(pool) if by_batch and isinstance(pool, PagedPool) else None
    return PackedModel(model, pool, batch_attention=attention, batch_invariant=options.batch_invariant)


def check_source(model_id: str) -> None:
    """Tell a folder that is not there, or holds no model, in clearer words than the hub's client has for it."""
    folder = Path(model_id)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"the folder {model_id!r} holds no config.json: it is not a transformers checkpoint")
    if not folder.is_dir() and not _HUB_NAME.fullmatch(model_id):
        raise ModelError(f"{model_id!r} is neither a folder nor a name on the hub (owner/name)")


def _weights(model_id: str, dtype: torch.dtype) -> Any:
    """The model with all of its weights: transformers would make up what a checkpoint lacks."""
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    try:
        model, found = factory.from_pretrained(model_id, dtype=dtype, trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights of {model_id!r} cannot be loaded: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"the checkpoint {model_id!r} lacks {len(missing)} weights, {missing[0]} among them")
    return model


def probe(model: Any) -> KVGeometry:
    """The shapes of a model's keys and values, read from a forward pass over one token."""
    recorder = _Recorder()
    sequence = KVSequence()
    packed = PackedModel(model, recorder)
    packed.run(pack([Segment(sequence, [0], 1)], model.device, model.dtype, one_row=False))
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(recorder.layers) != list(range(num_layers)):
        raise EngineError(f"of its {num_layers} layers, {len(recorder.layers)} attend through packed batches")
    dtype = next(iter(recorder.written.values()))[0].dtype
    return KVGeometry(tuple(recorder.layers[index] for index in sorted(recorder.layers)), dtype)


class _Recorder:
    """A KV pool of one token that notes what it is given."""

    page_tokens = capacity_tokens = used_tokens = 1

    def __init__(self) -> None:
        self.layers: dict[int, LayerGeometry] = {}
        self.written: dict[int, tuple[Tensor, Tensor]] = {}

    def fits(self, growth: object) -> bool:
        return True

    def reserve(self, sequence: KVSequence, length: int) -> None: ...

    def truncate(self, sequence: KVSequence, length: int) -> None: ...

    def copy(self, source: KVSequence, target: KVSequence, length: int) -> None: ...

    def write(self, layer: int, key: Tensor, value: Tensor, batch: RaggedBatch) -> None:
        self.layers[layer] = LayerGeometry(key.shape[0], key.shape[-1], value.shape[-1])
        self.written[layer] = key, value

    def read(self, layer: int, batch: RaggedBatch, index: int, start: int) -> tuple[Tensor, Tensor]:
        return self.written[layer]


def _pool(
    geometry: KVGeometry, device: torch.device, context_length: int, capacity: int, options: LoadOptions
) -> KVPool:
    layouts = {"auto": "slabs" if device.type == "cpu" else "paged", "slabs": "slabs", "paged": "paged"}
    layout = layouts.get(options.kv_layout)
    if layout is None or (layout == "slabs" and device.type != "cpu"):
        raise ConfigError(f"the KV layout {options.kv_layout!r} is not one for {device.type}: use auto or paged")
    if layout == "paged":
        return PagedPool(geometry, capacity, device)
    return SlabPool(geometry, capacity, context_length, options.max_sequences)


def _varlen_agrees(packed: PackedModel, expected: selfcheck.Reference) -> bool:
    """Whether the batch kernel is as close to the plain logits as the per-sequence attention; a warning where not."""
    pool = packed.pool
    if not isinstance(pool, PagedPool):
        return False
    by_sequence = selfcheck.relative_error(packed, expected)
    packed.batch_attention = varlen.paged_attention(pool)
    try:
        by_batch = selfcheck.relative_error(packed, expected)
    except EngineError as error:
        log.warning("paged FlashAttention failed: attending per sequence instead", error=str(error))
        return False
    agrees = by_batch <= max(_VARLEN_TOLERANCE * by_sequence, 1e-3)
    if not agrees:
        log.warning(
            "paged FlashAttention disagrees with the model: attending per sequence instead",
            relative_error=by_batch,
            per_sequence=by_sequence,
        )
    return agrees


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{name!r} is not a device: use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available: use auto or cpu")
    return device


def _dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    if name == "auto":
        own = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
        return torch.float32 if device.type == "cpu" or own is None else own
    if name not in _DTYPES:
        raise ConfigError(f"{name!r} is not a dtype: use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _context_length(config: Any, cap: int | None) -> int:
    """The model's context, capped where its rotary embedding would depend on the longest sequence of a batch."""
    text = config.get_text_config()
    own = getattr(text, "max_position_embeddings", None) or _DEFAULT_CONTEXT
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in [ropes, *(value for value in ropes.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            own = min(own, rope.get("original_max_position_embeddings") or own)
    return int(own if cap is None else min(own, cap))


def without_loading_bars() -> None:
    """Keep transformers from drawing progress bars over what the caller shows."""
    from transformers.utils import logging as transformers_logging

    cast("Any", transformers_logging).disable_progress_bar()


def own_name(model_id: str) -> str:
    """A folder's path is the business of its machine alone."""
    folder = Path(model_id)
    return folder.resolve().name if folder.is_dir() else model_id


def _vocabulary_size(tokenizer_json: bytes, model: Any) -> int:
    """One more than the highest id of the tokenizer that the model has an output for."""
    return min(vocabulary.vocabulary_size(tokenizer_json), int(model.config.get_text_config().vocab_size))
