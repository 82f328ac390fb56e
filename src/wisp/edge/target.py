"""What the device knows of the target: the server's hello as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from wisp.engines.base import GenerationDefaults
from wisp.errors import ProtocolError
from wisp.protocol import MAX_DRAFT_TOKENS
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.frames import rules_from_wire
from wisp.types import SLO, AcceptanceRule, TokenId


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """The model that the server serves, and on which terms."""

    model_id: str
    vocabulary: str
    vocabulary_size: int
    context_length: int
    """Longest history that the server verifies on."""
    eos_token_ids: frozenset[TokenId]
    chat_template: str | None
    special_tokens: Mapping[str, str]
    generation_defaults: GenerationDefaults
    slo_classes: Mapping[str, SLO]
    default_slo: str
    max_draft_tokens: int
    acceptance_rules: tuple[AcceptanceRule, ...]
    emulated: bool
    weights: str = ""
    """Fingerprint of the model's weights; empty: unknown."""


def target_info(hello: pb.ServerHello) -> TargetInfo:
    """The hello's values; raises ProtocolError where they cannot be used."""
    if hello.vocabulary_size == 0 or hello.context_length == 0:
        raise ProtocolError("the server's hello lacks the size of vocabulary or context")
    return TargetInfo(
        model_id=hello.model_id,
        vocabulary=hello.vocabulary,
        vocabulary_size=hello.vocabulary_size,
        context_length=hello.context_length,
        eos_token_ids=frozenset(hello.eos_token_ids),
        chat_template=hello.chat_template or None,
        special_tokens=_special_tokens(hello.special_tokens_json),
        generation_defaults=_defaults(hello.generation_defaults),
        slo_classes={slo.name: SLO(slo.name, slo.tokens_per_s, slo.first_token_s) for slo in hello.slo_classes},
        default_slo=hello.default_slo,
        max_draft_tokens=min(hello.max_draft_tokens, MAX_DRAFT_TOKENS),
        acceptance_rules=rules_from_wire(hello.acceptance_rules),
        emulated=hello.emulated,
        weights=hello.weights,
    )


def _special_tokens(text: str) -> dict[str, str]:
    try:
        tokens = json.loads(text or "{}")
    except ValueError as error:
        raise ProtocolError(f"the server's special tokens are not JSON: {error}") from error
    if not isinstance(tokens, dict):
        raise ProtocolError("the server's special tokens are not a JSON object")
    return {str(name): str(token) for name, token in tokens.items() if token is not None}


def _defaults(message: pb.GenerationDefaults) -> GenerationDefaults:
    given = {field.name: value for field, value in message.ListFields()}
    return GenerationDefaults(**given)
