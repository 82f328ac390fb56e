"""What devices have to know of a target model, from its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wisp.engines import vocabulary
from wisp.engines.base import GenerationDefaults, ModelCard
from wisp.errors import ModelError
from wisp.types import TokenId


def model_card(
    model_id: str,
    tokenizer: Any,
    settings: Mapping[str, Any],
    *,
    tokenizer_json: bytes,
    vocabulary_size: int,
    context_length: int,
    dtype: str,
    device: str,
    weights: str = "",
) -> ModelCard:
    """The card; `settings` are what the model's generation config says."""
    return ModelCard(
        model_id=model_id,
        tokenizer_json=tokenizer_json,
        vocabulary=vocabulary.fingerprint(tokenizer_json),
        vocabulary_size=vocabulary_size,
        context_length=context_length,
        eos_token_ids=_eos_token_ids(settings.get("eos_token_id"), tokenizer.eos_token_id),
        chat_template=_chat_template(tokenizer.chat_template),
        special_tokens={name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        generation_defaults=GenerationDefaults(
            **{name: settings.get(name) for name in GenerationDefaults.__dataclass_fields__}
        ),
        dtype=dtype,
        device=device,
        weights=weights,
    )


def tokenizer_json(tokenizer: Any, model_id: str) -> bytes:
    """The fast tokenizer's file. Raises ModelError where there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"the model {model_id!r} has no fast tokenizer (tokenizer.json), which the wire format needs")
    return str(backend.to_str()).encode()


def _eos_token_ids(configured: int | list[int] | None, of_tokenizer: int | None) -> tuple[TokenId, ...]:
    """Those of the generation config, then the tokenizer's."""
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(int(token) for token in [*ids, of_tokenizer] if token is not None))


def _chat_template(template: str | dict[str, str] | None) -> str | None:
    """The default one where a tokenizer has several."""
    return template.get("default") if isinstance(template, dict) else template
