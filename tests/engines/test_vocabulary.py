"""Vocabulary fingerprints: equal for the same ids and texts, different for anything that changes their meaning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from tests.engines import tiny_models
from wisp.engines.vocabulary import fingerprint, vocabulary_size
from wisp.errors import FormatError


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(tiny_models.tokenizer_json())
    return loaded


def encoded(content: dict[str, Any], **options: Any) -> bytes:
    return json.dumps(content, **options).encode()


def test_formatting_does_not_matter() -> None:
    """Indentation, escapes, the order of entries and the older spelling of merges are the same vocabulary."""
    content = document()
    expected = fingerprint(encoded(content))
    assert len(expected) == 64
    assert fingerprint(encoded(content, indent=4, ensure_ascii=False)) == expected
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    content["added_tokens"].reverse()
    content["truncation"] = {"max_length": 7}
    assert fingerprint(encoded(content)) == expected


@pytest.mark.parametrize("change", ["swap", "merge", "added", "special"])
def test_meaning_matters(change: str) -> None:
    """Swapped ids, a missing merge, one more added token and a token that is no longer special."""
    content = document()
    model = content["model"]
    if change == "swap":
        model["vocab"]["a"], model["vocab"]["b"] = model["vocab"]["b"], model["vocab"]["a"]
    elif change == "merge":
        model["merges"].pop()
    elif change == "added":
        content["added_tokens"].append({"id": 200, "content": "<more>", "special": True})
    else:
        content["added_tokens"][0]["special"] = False
    assert fingerprint(encoded(content)) != fingerprint(encoded(document()))


def test_the_size_counts_added_tokens() -> None:
    """One more than the highest id."""
    content = document()
    assert vocabulary_size(encoded(content)) == tiny_models.VOCABULARY_SIZE
    content["added_tokens"].append({"id": 200, "content": "<more>", "special": True})
    assert vocabulary_size(encoded(content)) == 201


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0),
        models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"),
        models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"),
    ],
    ids=["unigram", "wordpiece", "wordlevel"],
)
def test_other_models(model: Any) -> None:
    """Tokenizers without merges have fingerprints too, which see their pieces."""
    text = Tokenizer(model).to_str()
    assert vocabulary_size(text.encode()) == 3
    assert fingerprint(text.encode()) != fingerprint(text.replace('"b"', '"c"').encode())


@pytest.mark.parametrize("wrong", [b"", b"[]", b'{"model": null}', b"\xff", b'{"version": "1.0"}'])
def test_what_is_not_a_tokenizer_is_refused(wrong: bytes) -> None:
    """A file of another kind is the user's error, not a crash."""
    with pytest.raises(FormatError, match=r"tokenizer"):
        vocabulary_size(wrong)


def test_an_empty_vocabulary_has_no_size() -> None:
    """Nothing can be said with it."""
    with pytest.raises(FormatError, match="no vocabulary"):
        vocabulary_size(b'{"model": {"vocab": {}}}')
