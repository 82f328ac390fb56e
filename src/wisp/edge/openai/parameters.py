"""What a request asks of a generation; what it leaves open is the target's own default, then OpenAI's."""

from __future__ import annotations

from typing import Any, TypeVar

from wisp.edge.openai.errors import ApiError, invalid, not_supported
from wisp.edge.openai.schemas import ChatBody, CompletionBody, GenerationBody
from wisp.edge.settings import Defaults, GenerationSettings
from wisp.edge.target import TargetInfo
from wisp.types import SamplingParams, TokenId

MODEL_ALIAS = "wisp"
_T = TypeVar("_T")
_SEED_RANGE = 1 << 64


def chat_settings(body: ChatBody, defaults: Defaults) -> GenerationSettings:
    """Settings of a chat request. Raises ApiError."""
    check_supported(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    num_top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _settings(body, defaults, num_top_logprobs, max_tokens)


def completion_settings(body: CompletionBody, defaults: Defaults) -> GenerationSettings:
    """Settings of a completion request. Raises ApiError."""
    check_supported(body)
    if body.suffix:
        raise not_supported("suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise not_supported("best_of", "best_of other than n")
    if body.echo and body.logprobs is not None:
        raise not_supported("logprobs", "logprobs of the prompt (echo with logprobs)")
    return _settings(body, defaults, body.logprobs, body.max_tokens)


def check_model(name: str | None, target: TargetInfo) -> None:
    """Raise ApiError for a model that this device does not offer."""
    if name is not None and name not in (target.model_id, MODEL_ALIAS):
        message = (
            f"the model {name!r} does not exist: this endpoint offers {target.model_id!r}, also as {MODEL_ALIAS!r}"
        )
        raise ApiError(404, message, param="model", code="model_not_found")


def check_supported(body: GenerationBody) -> None:
    """Refuse what would silently be left out. Raises ApiError, which names the field."""
    given = body.model_extra or {}
    for field, harmless in _UNSUPPORTED.items():
        value = given.get(field)
        if value is not None and value not in harmless:
            raise not_supported(field)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options needs stream to be true")


_TEXT: dict[str, Any] = {"type": "text"}
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": (_TEXT,),
    "modalities": ([], ["text"]),
    "audio": (),
    "web_search_options": (),
    "use_beam_search": (False,),
    "prompt_logprobs": (),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), ()),
    **dict.fromkeys(("structured_outputs", "regex", "ebnf", "json_schema", "grammar"), ()),
}
"""Fields whose meaning cannot be honoured, with the values that ask for nothing."""


def _settings(
    body: GenerationBody, defaults: Defaults, num_top_logprobs: int | None, max_tokens: int | None
) -> GenerationSettings:
    target = defaults.target
    options = body.wisp
    slo = defaults.slo if options is None or options.slo is None else options.slo
    if slo is not None and slo not in target.slo_classes:
        known = ", ".join(target.slo_classes) or "none"
        raise invalid("wisp.slo", f"unknown SLO class {slo!r}: the server offers {known}")
    return GenerationSettings(
        sampling=_sampling(body, defaults, num_top_logprobs),
        max_tokens=max_tokens,
        stop_token_ids=_stop_token_ids(body, target),
        stop_strings=_stop_strings(body),
        num_choices=body.n or 1,
        slo=slo,
        num_draft_tokens=None if options is None else options.draft_tokens,
        stop_rule=None if options is None else _stop_rule(options.stop_rule, defaults),
        stop_threshold=None if options is None else options.stop_threshold,
    )


def _stop_rule(name: str | None, defaults: Defaults) -> str | None:
    if name is not None and name not in defaults.stop_rules:
        offered = ", ".join(defaults.stop_rules)
        raise invalid("wisp.stop_rule", f"unknown stop rule {name!r}: this device offers {offered}")
    return name


def _sampling(body: GenerationBody, defaults: Defaults, num_top_logprobs: int | None) -> SamplingParams:
    own = defaults.target.generation_defaults
    return SamplingParams(
        temperature=_first(body.temperature, own.temperature, 1.0),
        top_k=max(_first(body.top_k, own.top_k, 0), 0),
        top_p=_first(body.top_p, own.top_p, 1.0),
        min_p=_first(body.min_p, own.min_p, 0.0),
        repetition_penalty=_first(body.repetition_penalty, own.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body, defaults.target),
        seed=(defaults.new_seed() if body.seed is None else body.seed) % _SEED_RANGE,
        rule=defaults.rule,
        num_top_logprobs=num_top_logprobs,
    )


def _first(given: _T | None, own: _T | None, otherwise: _T) -> _T:
    return given if given is not None else own if own is not None else otherwise


def _logit_bias(body: GenerationBody, target: TargetInfo) -> tuple[tuple[TokenId, float], ...]:
    bias = []
    for name, value in (body.logit_bias or {}).items():
        if not name.isdecimal() or int(name) >= target.vocabulary_size:
            raise invalid("logit_bias", f"logit_bias: {name!r} is not a token id below {target.vocabulary_size}")
        bias.append((int(name), value))
    return tuple(sorted(bias))


def _stop_token_ids(body: GenerationBody, target: TargetInfo) -> frozenset[TokenId]:
    for token in body.stop_token_ids or ():
        if not 0 <= token < target.vocabulary_size:
            raise invalid("stop_token_ids", f"stop_token_ids: {token} is not a token id below {target.vocabulary_size}")
    own = frozenset() if body.ignore_eos else target.eos_token_ids
    return own | frozenset(body.stop_token_ids or ())


def _stop_strings(body: GenerationBody) -> tuple[str, ...]:
    strings = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not all(strings):
        raise invalid("stop", "stop: an empty string would end every text before it begins")
    return tuple(strings)
