"""The hello: what the server says of itself, and whether a device fits it."""

from __future__ import annotations

import hashlib
import json
from uuid import uuid4

import wisp
from wisp.config import ServerConfig
from wisp.engines.base import GenerationDefaults, ModelCard
from wisp.errors import ModelMismatch, VersionMismatch, VocabularyMismatch
from wisp.protocol import MAX_DRAFT_TOKENS, MAX_FRAME_BYTES, PROTOCOL_VERSION
from wisp.protocol import wisp_pb2 as pb
from wisp.protocol.frames import rules_to_wire

MAX_SESSIONS_PER_STREAM = 256


def server_hello(card: ModelCard, config: ServerConfig, max_history: int) -> pb.ServerHello:
    """The server's first frame; `max_history` is what its context and its cache allow."""
    return pb.ServerHello(
        protocol_version=PROTOCOL_VERSION,
        wisp_version=wisp.__version__,
        instance=uuid4().hex,
        model_id=card.model_id,
        vocabulary=card.vocabulary,
        vocabulary_size=card.vocabulary_size,
        tokenizer_sha256=hashlib.sha256(card.tokenizer_json).hexdigest(),
        tokenizer_bytes=len(card.tokenizer_json),
        chat_template=card.chat_template or "",
        special_tokens_json=json.dumps(card.special_tokens),
        eos_token_ids=card.eos_token_ids,
        context_length=max_history,
        generation_defaults=_generation_defaults(card.generation_defaults),
        slo_classes=[
            pb.SloClass(name=slo.name, tokens_per_s=slo.tokens_per_s, first_token_s=slo.first_token_s)
            for slo in config.slo_classes
        ],
        default_slo=config.default_slo,
        max_draft_tokens=min(config.max_draft_tokens, MAX_DRAFT_TOKENS),
        max_frame_bytes=MAX_FRAME_BYTES,
        max_sessions_per_stream=min(MAX_SESSIONS_PER_STREAM, config.max_sessions),
        emulated=card.emulated,
        acceptance_rules=rules_to_wire(card.acceptance_rules),
        weights=card.weights,
    )


def check_hello(device: pb.DeviceHello, server: pb.ServerHello) -> None:
    """Whether the two ends can work together. Raises VersionMismatch, ModelMismatch or VocabularyMismatch."""
    if device.protocol_version != server.protocol_version:
        raise VersionMismatch(
            f"the device speaks protocol version {device.protocol_version} (wisp {device.wisp_version or 'unknown'}), "
            f"the server version {server.protocol_version} (wisp {server.wisp_version}): update the older one"
        )
    if device.model_id and device.model_id != server.model_id:
        raise ModelMismatch(
            f"the device asks for model {device.model_id!r}, this server serves {server.model_id!r}: "
            "ask for that one or for none, or connect to another server"
        )
    if device.vocabulary and device.vocabulary != server.vocabulary:
        raise VocabularyMismatch(
            f"the drafter's vocabulary is {device.vocabulary}, that of {server.model_id!r} is {server.vocabulary}: "
            "draft with a model of the same tokenizer, or without a model (n-gram)"
        )


def _generation_defaults(defaults: GenerationDefaults) -> pb.GenerationDefaults:
    return pb.GenerationDefaults(
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
        min_p=defaults.min_p,
        repetition_penalty=defaults.repetition_penalty,
    )
