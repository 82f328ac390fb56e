"""TransformersDrafter: drafts are the draft model's own continuation, whatever was committed before."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.engines import tiny_models
from wisp.engines.base import StepMember
from wisp.engines.drafter import TransformersDrafter
from wisp.engines.packed.loading import LoadOptions
from wisp.engines.target import TransformersTarget
from wisp.engines.vocabulary import fingerprint
from wisp.errors import EngineError
from wisp.types import DraftedToken, GenerationRequest, SamplingParams, StopRules


def request(tokens: list[int] | tuple[int, ...], sampling: SamplingParams | None = None) -> GenerationRequest:
    return GenerationRequest(tuple(tokens), len(tokens), sampling or SamplingParams(), StopRules(100))


@pytest.fixture(scope="module")
def plain() -> object:
    return tiny_models.model("mistral")


@pytest.fixture
def drafter() -> TransformersDrafter:
    return TransformersDrafter(tiny_models.loaded("mistral"))


def test_drafts_are_the_models_own_greedy_continuation(plain: object, drafter: TransformersDrafter) -> None:
    """Batched over sessions, after random commits and rollbacks."""
    rng = np.random.default_rng(0)
    histories = {name: list(tiny_models.prompt(rng, 3 + 11 * i)) for i, name in enumerate("abc")}
    for name, history in histories.items():
        drafter.open(name, request(history))
    for _ in range(12):
        chosen = [name for name in histories if rng.random() < 0.7]
        length = int(rng.integers(1, 6))
        drafts: dict[str, list[int]] = {name: [] for name in chosen}
        for _ in range(length):
            for name, drafted in zip(chosen, drafter.draft(chosen), strict=True):
                assert drafted is not None
                drafts[name].append(drafted.token)
        for name in chosen:
            assert drafts[name] == tiny_models.generate(plain, histories[name], length)
            accepted = int(rng.integers(0, length + 1))
            correction = list(tiny_models.prompt(rng, int(rng.integers(0 if accepted else 1, 3))))
            drafter.commit(name, accepted, correction)
            histories[name] += drafts[name][:accepted] + correction


def test_statistics_are_those_of_the_raw_logits(plain: object, drafter: TransformersDrafter) -> None:
    """Confidence, entropy, margin and spread against their definitions."""
    prompt = tiny_models.prompt(np.random.default_rng(1), 20)
    drafter.open("s", request(prompt))
    drafted = drafter.draft(["s"])[0]
    with torch.inference_mode():
        logits = plain(torch.tensor([prompt]), use_cache=False).logits[0, -1].double()  # type: ignore[operator]
    p = logits.softmax(-1)
    top = logits.topk(2).values
    assert drafted is not None
    assert drafted.stats is not None
    assert drafted.token == int(logits.argmax())
    assert drafted.stats.confidence == pytest.approx(float(p.max()), rel=1e-4)
    assert drafted.stats.entropy == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)
    assert drafted.stats.margin == pytest.approx(float(top[0] - top[1]), rel=1e-3)
    assert drafted.stats.logit_std == pytest.approx(float(logits.std(unbiased=False)), rel=1e-2)
    assert drafted.stats.token_probability == pytest.approx(float(p.max()), rel=1e-4)


def test_a_drafter_that_is_the_target_is_always_right() -> None:
    """Under coupled sampling both ends draw with one noise: equal models agree on every token."""
    target = TransformersTarget(tiny_models.loaded("llama"))
    drafter = TransformersDrafter(tiny_models.loaded("llama"))
    sampling = SamplingParams(temperature=1.0, top_k=20, seed=11, presence_penalty=0.3)
    opened = request(tiny_models.prompt(np.random.default_rng(2), 10), sampling)
    target.open("s", "", opened)
    drafter.open("s", opened)
    for _ in range(8):
        draft = tuple(drafter.draft(["s"])[0] for _ in range(4))
        prefill = len(target.history("s")) - 1 - target.num_cached_tokens("s")
        outcome = target.step([StepMember("s", prefill, draft)])[0]  # type: ignore[arg-type]
        assert outcome.num_accepted == 4
        assert outcome.next_token is not None
        drafter.commit("s", 4, [outcome.next_token])


def test_lagging_caches_catch_up_in_chunks(
    plain: object, drafter: TransformersDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long histories are computed piece by piece, when a draft is asked for."""
    monkeypatch.setattr("wisp.engines.drafter._PREFILL_TOKENS", 16)
    prompt = tiny_models.prompt(np.random.default_rng(3), 50)
    drafter.open("s", request(prompt))
    drafts = [drafter.draft(["s"])[0] for _ in range(3)]
    assert [drafted.token for drafted in drafts if drafted] == tiny_models.generate(plain, prompt, 3)


def test_prefixes_are_used_again(plain: object, drafter: TransformersDrafter) -> None:
    """A closed session's cache, committed tokens only, serves the next turn of the conversation."""
    prompt = tiny_models.prompt(np.random.default_rng(4), 40)
    drafter.open("first", request(prompt))
    drafter.draft(["first"])
    drafter.draft(["first"])
    drafter.close("first")
    longer = (*prompt, 5, 6, 7)
    drafter.open("second", request(longer))
    assert drafter._sessions["second"].resident.num_cached == 40
    drafted = drafter.draft(["second"])[0]
    assert isinstance(drafted, DraftedToken)
    assert [drafted.token] == tiny_models.generate(plain, longer, 1)


def test_idle_sessions_make_room() -> None:
    """When the pool is full the caches of sessions that don't draft go, and come back when they do."""
    drafter = TransformersDrafter(tiny_models.loaded("llama", kv_tokens=128))
    plain = tiny_models.model("llama")
    rng = np.random.default_rng(5)
    prompts = {name: tiny_models.prompt(rng, 70) for name in "ab"}
    for name, prompt in prompts.items():
        drafter.open(name, request(prompt))
    for name in "abab":
        drafted = drafter.draft([name])[0]
        assert drafted is not None
        assert [drafted.token] == tiny_models.generate(plain, prompts[name], 1)
        drafter.commit(name, 0, [])
    with pytest.raises(EngineError, match="full"):
        drafter.draft(["a", "b"])


def test_nothing_is_proposed_beyond_the_context(drafter: TransformersDrafter) -> None:
    """A session at the end of its context has no draft; others go on."""
    rng = np.random.default_rng(6)
    drafter.open("long", request(tiny_models.prompt(rng, tiny_models.CONTEXT)))
    drafter.open("short", request(tiny_models.prompt(rng, 5)))
    assert drafter.draft(["long"])[0] is not None
    long, short = drafter.draft(["long", "short"])
    assert long is None
    assert short is not None
    assert drafter.draft(["long"]) == [None]
    assert drafter.draft([]) == []


def test_misuse_is_refused(drafter: TransformersDrafter) -> None:
    """Unknown sessions, and more accepted than drafted."""
    drafter.open("s", request((5, 6)))
    with pytest.raises(EngineError, match="1 of 0"):
        drafter.commit("s", 1, [])
    drafter.close("s")
    with pytest.raises(EngineError, match="no session"):
        drafter.draft(["s"])
    drafter.shutdown()


def test_a_checkpoint_is_loaded(tmp_path: object) -> None:
    """Its fingerprint is that of its tokenizer, its numbers finite."""
    drafter = TransformersDrafter.load(str(tiny_models.save(tmp_path)), LoadOptions(device="cpu"))  # type: ignore[arg-type]
    assert drafter.vocabulary == fingerprint(tiny_models.tokenizer_json().encode())
    assert drafter.context_length == tiny_models.CONTEXT
    drafter.open("s", request((5, 6, 7)))
    drafted = drafter.draft(["s"])[0]
    assert drafted is not None
    assert drafted.stats is not None
    assert math.isfinite(drafted.stats.entropy)
