"""Which vocabulary a tokenizer has: draft and target must share one for token ids to mean the same on both ends."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from wisp.errors import FormatError


def fingerprint(tokenizer_json: bytes) -> str:
    """SHA-256, in hex, of what maps ids to text and text to ids in a `tokenizer.json`.

    Covers the vocabulary, merges or scores, and the added tokens with their roles; not the formatting of the file, nor
    rows that pad an embedding. Raises FormatError.
    """
    model, added = _parts(tokenizer_json)
    canonical = {
        "type": model.get("type"),
        "vocabulary": _canonical_vocabulary(model.get("vocab", {})),
        "merges": [list(_pair(merge)) for merge in model.get("merges", [])],
        "added": sorted([token["id"], token["content"], bool(token.get("special"))] for token in added),
    }
    text = json.dumps(canonical, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def vocabulary_size(tokenizer_json: bytes) -> int:
    """One more than the highest token id; raises FormatError."""
    model, added = _parts(tokenizer_json)
    ids = [entry[0] for entry in _canonical_vocabulary(model.get("vocab", {}))]
    ids += [token["id"] for token in added]
    if not ids:
        raise FormatError("the tokenizer has no vocabulary")
    return int(max(ids)) + 1


def _parts(tokenizer_json: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The model and the added tokens of a `tokenizer.json`."""
    try:
        document = json.loads(tokenizer_json)
        return dict(document["model"]), document.get("added_tokens") or []
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"this is not a tokenizer.json: {error}") from error


def _canonical_vocabulary(vocabulary: Any) -> list[list[Any]]:
    """[id, token] by id; Unigram models list [token, score] in the order of the ids: [id, token, score]."""
    if isinstance(vocabulary, dict):
        return sorted([index, token] for token, index in vocabulary.items())
    return [[index, *entry] for index, entry in enumerate(vocabulary)]


def _pair(merge: Any) -> tuple[str, str]:
    """A merge as a pair: older files write it as one string."""
    if isinstance(merge, str):
        left, right = merge.split(" ")
        return left, right
    left, right = merge
    return left, right
