"""TransformersTarget: whatever the drafts, chunks, batches and evictions, the tokens are the target's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engines import tiny_models
from tests.engines.driving import arrival, as_members, drive, finish, member, request
from wisp.config import ModelConfig, ServerConfig
from wisp.engines.base import StepMember, StepOutcome
from wisp.engines.packed.batch import Segment
from wisp.engines.packed.loading import LoadOptions, load
from wisp.engines.target import TransformersTarget
from wisp.errors import EngineError, InvalidRequest, ModelError, ModelTooLarge
from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.server.app import build_engine
from wisp.types import (
    AcceptanceRule,
    Batch,
    DraftedToken,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)


def count_tokens(target: TransformersTarget) -> list[int]:
    """From now on, how many tokens each forward pass computes."""
    computed: list[int] = []
    forward = target._packed.forward

    def counting(segments: Sequence[Segment]) -> torch.Tensor:
        computed.append(sum(len(segment.tokens) for segment in segments))
        return forward(segments)

    target._packed.forward = counting  # type: ignore[method-assign]
    return computed


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, "slabs") for name in tiny_models.CONFIGS]
    + [(name, "paged") for name in ("llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3")],
)
def test_greedy_output_is_the_models_own(name: str, layout: str) -> None:
    """Several sessions with random drafts, chunked prefill, rollback and evictions equal generate()."""
    rng = np.random.default_rng(1)
    plain = tiny_models.model(name)
    target = TransformersTarget(tiny_models.loaded(name, kv_layout=layout))
    truth = {}
    for index, length in enumerate((3, 30, 55)):
        prompt = tiny_models.prompt(rng, length)
        truth[str(index)] = [*prompt, *tiny_models.generate(plain, prompt, 64)]
        target.open(str(index), "owner", request(prompt))
    accepted = drive(target, truth, seed=2)
    assert {session_id: list(target.history(session_id)) for session_id in truth} == truth
    assert min(accepted.values()) > 10


@pytest.fixture(scope="module")
def plain() -> object:
    return tiny_models.model("llama")


@pytest.fixture
def target() -> TransformersTarget:
    return TransformersTarget(tiny_models.loaded("llama"))


def test_logprobs_are_those_of_a_plain_forward_pass(plain: object, target: TransformersTarget) -> None:
    """Committed tokens and their alternatives carry the log-probabilities of the raw logits."""
    prompt = tiny_models.prompt(np.random.default_rng(0), 9)
    truth = tiny_models.generate(plain, prompt, 6)
    target.open("s", "", request(prompt, sampling=SamplingParams(num_top_logprobs=3)))
    outcome = target.step([member(target, "s", truth[:5])])[0]
    with torch.inference_mode():
        logits = plain(torch.tensor([[*prompt, *truth]]), use_cache=False).logits[0].float()  # type: ignore[operator]
    expected = logits.log_softmax(-1)[len(prompt) - 1 :]
    assert outcome.num_accepted == 5
    assert len(outcome.logprobs) == 6
    for row, token, got in zip(expected, truth, outcome.logprobs, strict=False):
        assert got.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3)
        assert [token for token, _ in got.top] == best.indices.tolist()
        assert [value for _, value in got.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_coupled_sampling_does_not_depend_on_drafts(target: TransformersTarget) -> None:
    """For one seed the tokens are the same without drafts, with random ones and with evictions."""
    sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=7, frequency_penalty=0.2)
    prompt = tiny_models.prompt(np.random.default_rng(3), 12)
    target.open("plain", "a", request(prompt, sampling=sampling))
    finish(target, "plain")
    truth = list(target.history("plain"))
    for seed in range(3):
        session_id = f"drafted {seed}"
        target.open(session_id, "b", request(prompt, sampling=sampling))
        drive(target, {session_id: truth}, seed)
        assert list(target.history(session_id)) == truth


def test_stop_tokens_end_a_generation(plain: object, target: TransformersTarget) -> None:
    """Nothing after a stop token is committed, wherever in the draft it lies."""
    prompt = tiny_models.prompt(np.random.default_rng(4), 10)
    truth = tiny_models.generate(plain, prompt, 12)
    stop = next(token for i, token in enumerate(truth) if i >= 3 and token not in truth[:i])
    at = truth.index(stop)
    for num_drafted in range(at + 3):
        target.open("s", "", request(prompt, stop=frozenset({stop})))
        outcomes = [target.step([member(target, "s", truth[:num_drafted])])[0]]
        while outcomes[-1].finish_reason is None:
            outcomes += target.step([member(target, "s")])
        assert outcomes[-1].finish_reason is FinishReason.STOP
        assert list(target.history("s")) == [*prompt, *truth[: at + 1]]
        assert (outcomes[-1].next_token is None) == (num_drafted > at)


@pytest.mark.parametrize("num_drafted", [0, 3, 4, 8])
def test_max_tokens_end_a_generation(plain: object, target: TransformersTarget, num_drafted: int) -> None:
    """Exactly max_tokens are committed, and no positions beyond them are computed."""
    prompt = tiny_models.prompt(np.random.default_rng(5), 10)
    truth = tiny_models.generate(plain, prompt, 8)
    target.open("s", "", request(prompt, max_tokens=4))
    outcome = target.step([member(target, "s", truth[:num_drafted])])[0]
    assert outcome.num_verified <= 3
    if outcome.finish_reason is None:
        outcome = finish(target, "s")
    assert outcome.finish_reason is FinishReason.LENGTH
    assert list(target.history("s")) == [*prompt, *truth[:4]]


def test_members_do_what_they_are_told(target: TransformersTarget) -> None:
    """Prefill chunks are cached as asked; a member that cannot be computed is an error."""
    prompt = tiny_models.prompt(np.random.default_rng(6), 20)
    target.open("s", "", request(prompt))
    assert target.step([]) == []
    assert target.step([StepMember("s", 7)]) == [StepOutcome()]
    assert target.num_cached_tokens("s") == 7
    for wrong in (StepMember("s", 13), StepMember("s", 3, ()), StepMember("unknown", 1)):
        with pytest.raises(EngineError):
            target.step([wrong])
    with pytest.raises(EngineError, match="twice"):
        target.step([StepMember("s", 1), StepMember("s", 1)])
    assert target.num_cached_tokens("s") == 7
    target.step([StepMember("s", 12, ())])
    assert target.num_cached_tokens("s") == 20
    target.evict("s")
    assert target.num_cached_tokens("s") == 0
    assert len(target.history("s")) == 21


def test_a_session_keeps_its_prefix_when_it_is_opened_again(target: TransformersTarget) -> None:
    """Re-opening keeps what is common to both histories, never the last token."""
    prompt = tiny_models.prompt(np.random.default_rng(7), 40)
    assert target.open("s", "me", request(prompt)) == 0
    target.step([member(target, "s")])
    assert target.open("s", "me", request(prompt)) == 39
    other = [*prompt[:30], 2, 3, 4]
    other[30] = prompt[30] % 90 + 3
    assert target.open("s", "me", request(other)) == 30
    assert target.open("s", "somebody else", request(prompt)) == 0


def test_prefixes_are_shared_within_an_owner(plain: object, target: TransformersTarget) -> None:
    """Closed sessions are taken over, open ones copied, strangers' never touched; the tokens stay right."""
    rng = np.random.default_rng(8)
    prompt = tiny_models.prompt(rng, 40)
    longer = (*prompt, *tiny_models.prompt(rng, 10))
    target.open("first", "me", request(prompt))
    target.step([member(target, "first")])
    assert target.open("copy", "me", request(longer)) == 40
    assert target.open("stranger", "you", request(longer)) == 0
    target.close("first")
    assert target.open("heir", "me", request(prompt)) == 39
    truth = {
        "copy": [*longer, *tiny_models.generate(plain, longer, 64)],
        "stranger": [*longer, *tiny_models.generate(plain, longer, 64)],
        "heir": [*prompt, *tiny_models.generate(plain, prompt, 64)],
    }
    drive(target, truth, seed=9, evict=0.0)
    assert {session_id: list(target.history(session_id)) for session_id in truth} == truth


def test_choices_of_one_prompt_share_their_prefill(target: TransformersTarget) -> None:
    """A session that was opened before its twin was prefilled copies the prefix in its first step."""
    prompt = tiny_models.prompt(np.random.default_rng(10), 40)
    for session_id in "ab":
        assert target.open(session_id, "me", request(prompt)) == 0
    computed = count_tokens(target)
    target.step([member(target, "a")])
    target.step([member(target, "b")])
    assert computed == [40, 1]
    assert target.history("a") == target.history("b")


def test_choices_in_one_batch_share_their_prefill(plain: object, target: TransformersTarget) -> None:
    """Of several new sessions with one prompt, one computes it and the others copy; strangers compute their own."""
    prompt = tiny_models.prompt(np.random.default_rng(13), 40)
    for session_id, owner in (("a", "me"), ("b", "me"), ("c", "you"), ("d", "me")):
        target.open(session_id, owner, request(prompt))
    computed = count_tokens(target)
    outcomes = target.step([member(target, session_id, (5,)) for session_id in "abcd"])
    assert computed == [82, 4]
    assert {outcome.next_token for outcome in outcomes} == set(tiny_models.generate(plain, prompt, 1))


def test_a_failed_step_leaves_the_sessions_as_they_were(
    target: TransformersTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """History and cache are those of before, and what was reserved is free again."""
    prompt = tiny_models.prompt(np.random.default_rng(15), 40)
    target.open("s", "", request(prompt))
    target.step([StepMember("s", 8)])
    used = target._pool.used_tokens

    def failing(batch: object) -> torch.Tensor:
        raise EngineError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(target._packed, "run", failing)
        with pytest.raises(EngineError, match="out of memory"):
            target.step([member(target, "s", (5, 6))])
    assert (target.num_cached_tokens("s"), len(target.history("s")), target._pool.used_tokens) == (8, 40, used)
    assert target.step([member(target, "s")])[0].next_token is not None


def test_unknown_token_ids_in_a_draft_are_not_computed(plain: object, target: TransformersTarget) -> None:
    """A device may send anything: what cannot be accepted ends its draft."""
    prompt = tiny_models.prompt(np.random.default_rng(14), 10)
    truth = tiny_models.generate(plain, prompt, 2)
    for unknown in (tiny_models.VOCABULARY_SIZE, -1, 1 << 40):
        target.open("s", "", request(prompt))
        outcome = target.step([member(target, "s", (truth[0], unknown, 7))])[0]
        assert (outcome.num_verified, outcome.num_accepted, outcome.next_token) == (1, 1, truth[1])


@pytest.mark.parametrize("layout", ["slabs", "paged"])
def test_closed_sessions_make_room_and_open_ones_do_not(layout: str) -> None:
    """When the pool is full, closed sessions go first; after that a step is refused and nothing is lost."""
    target = TransformersTarget(tiny_models.loaded("llama", kv_tokens=512, kv_layout=layout))
    assert target.kv_capacity_tokens == 512
    rng = np.random.default_rng(11)
    size = 180
    for session_id in "abc":
        target.open(session_id, "me", request(tiny_models.prompt(rng, size), max_tokens=8))
    target.step([member(target, "a")])
    target.step([member(target, "b")])
    with pytest.raises(EngineError, match="full"):
        target.step([member(target, "c")])
    assert target.num_cached_tokens("c") == 0
    assert target.num_cached_tokens("a") == size
    target.close("a")
    assert target.step([member(target, "c")])[0].next_token is not None
    target.evict("b")
    target.open("d", "me", request(tiny_models.prompt(rng, size), max_tokens=8))
    assert target.step([member(target, "d")])[0].next_token is not None
    target.shutdown()
    assert target._pool.used_tokens == 0


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (request(()), "prompt"),
        (request((5, 96)), "prompt"),
        (request((5, -1)), "prompt"),
        (request((5,) * 200, max_tokens=57), "max_tokens"),
        (request((5, 6), max_tokens=0), "max_tokens"),
        (request((5, 6, 7), max_tokens=1, num_prompt_tokens=2), "max_tokens"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(
    target: TransformersTarget, wrong: GenerationRequest, field: str
) -> None:
    """The error names the field."""
    with pytest.raises(InvalidRequest) as caught:
        target.open("s", "", wrong)
    assert caught.value.field == field
    with pytest.raises(EngineError, match="no session"):
        target.history("s")


def test_a_request_larger_than_the_cache_is_refused() -> None:
    """A session must fit into the pool on its own."""
    target = TransformersTarget(tiny_models.loaded("llama", kv_tokens=128))
    with pytest.raises(InvalidRequest, match="128"):
        target.open("s", "", request((5,) * 100, max_tokens=29))


def test_a_checkpoint_is_loaded_with_all_that_devices_need(tmp_path: Path, plain: object) -> None:
    """Folder in, model card and the model's own tokens out."""
    folder = tiny_models.save(tmp_path / "tiny")
    target = TransformersTarget.load(str(folder), LoadOptions(device="cpu", max_context=200))
    card = target.card
    assert card.model_id == "tiny"
    assert card.vocabulary_size == tiny_models.VOCABULARY_SIZE
    assert card.context_length == 200
    assert card.eos_token_ids == (1, 2)
    assert card.generation_defaults.repetition_penalty == 1.1
    assert card.generation_defaults.temperature is None
    assert card.special_tokens["eos_token"] == "<eos>"
    assert card.chat_template is not None
    assert b'"vocab"' in card.tokenizer_json
    assert target.kv_capacity_tokens >= 200
    prompt = tiny_models.prompt(np.random.default_rng(12), 20)
    target.open("s", "", request(prompt, max_tokens=16))
    finish(target, "s")
    assert list(target.history("s")) == [*prompt, *tiny_models.generate(plain, prompt, 16)]


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    """The weights need not even be there."""
    folder = tiny_models.save(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelTooLarge, match="GiB"):
        load(str(folder), LoadOptions(device="cpu", memory_gib=1e-6))
    with pytest.raises(ModelTooLarge, match="KV cache"):
        load(str(folder), LoadOptions(device="cpu", memory_gib=0.1, kv_gib=1.0))
    with pytest.raises(ModelError, match="weights"):
        load(str(folder), LoadOptions(device="cpu"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"holds no config\.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer of"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer of"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\1" * 99), "the weights of"),
        (shutil.rmtree, "neither a folder nor a name on the hub"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """A wrong or half-copied folder ends in a message that says which part of it is to blame."""
    folder = tiny_models.save(tmp_path / "tiny")
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load(str(folder), LoadOptions(device="cpu"))


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """What transformers would fill with random numbers is an error."""
    file = tiny_models.save(tmp_path) / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(tmp_path), LoadOptions(device="cpu"))


@pytest.mark.parametrize("layout", ["slabs", "paged"])
def test_the_scheduler_keeps_the_cache_within_its_capacity(plain: object, layout: str) -> None:
    """Twelve sessions share a pool that holds some of them: the others wait, growth evicts, and the tokens stay right."""
    target = TransformersTarget(tiny_models.loaded("llama", kv_tokens=768, kv_layout=layout))
    limits = SchedulerLimits(
        kv_capacity_tokens=target.kv_capacity_tokens, kv_page_tokens=target.kv_page_tokens, max_prefill_tokens=64
    )
    scheduler = FCFSScheduler(limits)
    rng = np.random.default_rng(16)
    truth, held, together, evictions = {}, [], [], 0
    for index in range(12):
        prompt = tiny_models.prompt(rng, 20 + 3 * index)
        truth[str(index)] = [*prompt, *tiny_models.generate(plain, prompt, 100)]
        target.open(str(index), "me", request(prompt, 100))
        scheduler.add(arrival(target, str(index), 0.0))
    for now in range(1, 2000):
        if not isinstance(batch := scheduler.schedule(float(now)), Batch):
            break
        for session_id in scheduler.evictions():
            target.evict(session_id)
            evictions += 1
        for one, outcome in zip(batch.members, target.step(as_members(batch, target, truth)), strict=True):
            session_id = one.request.session_id
            scheduler.cached(session_id, target.num_cached_tokens(session_id), float(now))
            if outcome.finish_reason is not None:
                scheduler.release(session_id)
                target.evict(session_id)
            elif one.completes:
                scheduler.add(arrival(target, session_id, float(now)))
        cached = [target.num_cached_tokens(session_id) for session_id in truth]
        held.append(sum(map(limits.occupied, cached)))
        together.append(sum(num_cached > 0 for num_cached in cached))
    # Of pages that hold a whole context nobody ever needs a second one.
    assert evictions > 5 if layout == "slabs" else evictions == 0
    assert max(held) <= target.kv_capacity_tokens
    assert 1 < max(together) < len(truth)
    assert {session_id: list(target.history(session_id)) for session_id in truth} == truth


def test_every_session_that_a_server_admits_may_hold_a_cache(tmp_path: Path) -> None:
    """The engine that a server builds has as many slots as the server takes sessions."""
    target = build_engine(ServerConfig(ModelConfig(str(tiny_models.save(tmp_path))), max_sessions=530))
    for index in range(530):
        target.open(str(index), "me", request([3, 4]))
    outcomes = target.step([StepMember(str(index), 1, ()) for index in range(530)])
    assert len({outcome.next_token for outcome in outcomes}) == 1


def test_a_trimmed_token_is_still_proposed() -> None:
    """Under rejection sampling the token at the cut may be the one that is emitted, at no extra position."""
    target = TransformersTarget(tiny_models.loaded("llama", kv_tokens=16384))
    tokens = tiny_models.prompt(np.random.default_rng(0), 8)
    for seed in range(40):
        sampling = SamplingParams(temperature=1.0, seed=seed, rule=AcceptanceRule.REJECTION)
        for name in ("whole", "cut"):
            target.open(f"{name} {seed}", "me", request(tokens, sampling=sampling))
    seeds = range(40)
    whole = target.step([member(target, f"whole {seed}", [7]) for seed in seeds])
    cut = target.step([replace(member(target, f"cut {seed}"), trimmed=DraftedToken(7)) for seed in seeds])
    assert {outcome.num_verified for outcome in cut} == {0}
    # both accept 7 with the same noise; the draft that is verified goes on to one more token then
    first = [7 if outcome.num_accepted else outcome.next_token for outcome in whole]
    assert [outcome.next_token for outcome in cut] == first


def test_what_the_engine_cuts_off_is_still_proposed(target: TransformersTarget) -> None:
    """At max_tokens and before an unknown id the engine itself trims, and the token at the cut takes part all the same."""
    prompt = tiny_models.prompt(np.random.default_rng(0), 8)
    outcomes: dict[str, list[int | None]] = {"long": [], "last": []}
    for seed in range(40):
        sampling = SamplingParams(temperature=1.0, seed=seed, rule=AcceptanceRule.REJECTION)
        for name, max_tokens in (("long", 5), ("last", 1)):
            target.open(name, "me", request(prompt, max_tokens, sampling))
            outcome = target.step([member(target, name, [7])])[0]
            outcomes[name].append(target.history(name)[len(prompt)])
            assert outcome.num_verified == (name == "long")
    assert outcomes["long"] == outcomes["last"]
    target.open("s", "me", request(prompt, sampling=SamplingParams(temperature=1.0, rule=AcceptanceRule.REJECTION)))
    outcome = target.step([member(target, "s", [1 << 40])])[0]
    assert (outcome.num_verified, outcome.num_accepted) == (0, 0)
    assert outcome.next_token is not None
    assert outcome.next_token < tiny_models.VOCABULARY_SIZE
