"""What every target engine with a real model promises: one suite, run by test_contract.py and vllm/test_contract.py.

Checkpoints are tiny random models in float32, so "the model's own" is what transformers computes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines import tiny_models
from tests.engines.chi_square import FALSE_ALARM, p_value
from tests.engines.driving import arrival, as_members, drive, finish, member, request
from wisp.engines.base import StepMember, TargetEngine
from wisp.engines.target import TransformersTarget
from wisp.errors import EngineError, InvalidRequest
from wisp.policy.scheduler import FCFSScheduler, SchedulerLimits
from wisp.types import AcceptanceRule, Batch, SamplingParams

ARCHITECTURES = ("llama", "qwen3", "gemma3")
SHAPE: dict[str, Any] = {"hidden_size": 128, "head_dim": 32}
"""Attention kernels have a smallest head."""
MOST_REQUESTS = 8
"""In one step."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tiny model on disk and in memory."""

    folder: Path
    plain: Any

    @classmethod
    def of(cls, folder: Path, name: str) -> Checkpoint:
        return cls(tiny_models.save(folder / name, name, **SHAPE), tiny_models.model(name, **SHAPE))

    def truth(self, rng: np.random.Generator, length: int, num_tokens: int = 64) -> list[int]:
        """A random prompt and the model's own continuation."""
        prompt = tiny_models.prompt(rng, length)
        return [*prompt, *tiny_models.generate(self.plain, prompt, num_tokens)]


def kv_gib(num_tokens: int) -> float:
    """Memory for the keys and values of so many tokens: 3 layers, 2 heads of 32, float32."""
    return num_tokens * 3 * 2 * 2 * 32 * 4 / 2**30


class EngineContract:
    """How a subclass of the suites below loads the engine that is tested."""

    @staticmethod
    def load(folder: Path, kv_tokens: int) -> TargetEngine:
        raise NotImplementedError


class GreedyContract(EngineContract):
    """Greedy decoding in float32 is the model's own."""

    @pytest.fixture(scope="class", params=ARCHITECTURES)
    @classmethod
    def checkpoint(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
        return Checkpoint.of(tmp_path_factory.mktemp("greedy"), request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, checkpoint: Checkpoint) -> Iterator[TargetEngine]:
        target = cls.load(checkpoint.folder, 8192)
        yield target
        target.shutdown()

    def test_output_is_the_models_own(self, checkpoint: Checkpoint, target: TargetEngine) -> None:
        """Ragged drafts of 0 to 8 tokens, chunks, rollback, evictions, and more sessions than one step takes."""
        rng = np.random.default_rng(1)
        lengths = rng.integers(1, 120, MOST_REQUESTS + 4)
        truth = {f"own {i}": checkpoint.truth(rng, int(length), 40) for i, length in enumerate(lengths)}
        for session_id, tokens in truth.items():
            target.open(session_id, "owner", request(tokens[:-40], 40))
        accepted = drive(target, truth, seed=2, most=MOST_REQUESTS)
        assert {session_id: list(target.history(session_id)) for session_id in truth} == truth
        assert min(accepted.values()) > 5
        for session_id in truth:
            target.close(session_id)

    def test_seeded_sampling_is_that_of_the_transformers_engine(
        self, checkpoint: Checkpoint, target: TargetEngine
    ) -> None:
        """The whole sampler: a seed gives the same tokens on every engine, whatever the drafts and evictions."""
        rng = np.random.default_rng(3)
        reference = TransformersTarget.load(str(checkpoint.folder))
        truth = {}
        for index, params in enumerate(_SAMPLERS):
            name, prompt = f"sampled {index}", tiny_models.prompt(rng, 20 + index)
            asked = request(prompt, 32, replace(params, seed=index + 1))
            reference.open(name, "owner", asked)
            finish(reference, name)
            truth[name] = list(reference.history(name))
            target.open(name, "owner", asked)
        drive(target, truth, seed=4)
        assert {name: list(target.history(name)) for name in truth} == truth
        for name in truth:
            target.close(name)


_SAMPLERS = (
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.9),
    SamplingParams(temperature=1.2, min_p=0.05),
    SamplingParams(temperature=0.9, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
    SamplingParams(temperature=0.8, logit_bias=((5, 4.0), (9, -50.0))),
    SamplingParams(temperature=1.0, choice_index=3, num_top_logprobs=2),
    SamplingParams(repetition_penalty=1.3, logit_bias=((7, 2.0),)),
)


class SessionContract(EngineContract):
    """Opening, re-opening, evicting, closing; logprobs; the distribution of what is sampled."""

    num_draws = 100_000
    draws_at_once = 64

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(cls, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
        return Checkpoint.of(tmp_path_factory.mktemp("sessions"), "llama")

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls, checkpoint: Checkpoint) -> Iterator[TargetEngine]:
        target = cls.load(checkpoint.folder, 8192)
        yield target
        target.shutdown()

    def test_the_card_says_what_devices_need(self, target: TargetEngine) -> None:
        """Vocabulary, context, ends of text, defaults, template."""
        card = target.card
        assert (card.model_id, card.vocabulary_size, card.context_length) == ("llama", tiny_models.VOCABULARY_SIZE, 256)
        assert (card.eos_token_ids, card.dtype) == ((1, 2), "float32")
        assert card.generation_defaults.repetition_penalty == 1.1
        assert card.chat_template is not None

    def test_a_session_keeps_its_prefix_when_it_is_opened_again(self, target: TargetEngine) -> None:
        """In whole pages at least, never the last token, and never across owners."""
        page = target.kv_page_tokens
        prompt = tiny_models.prompt(np.random.default_rng(7), 3 * page + 8)
        assert target.open("s", "me", request(prompt)) == 0
        target.step([member(target, "s")])
        assert 3 * page <= target.open("s", "me", request(prompt)) < len(prompt)
        other = [*prompt[: 2 * page], *(token % 90 + 3 for token in prompt[2 * page :])]
        assert target.open("s", "me", request(other)) == 2 * page
        assert target.open("s", "somebody else", request(prompt)) == 0
        target.close("s")

    def test_eviction_drops_the_cache_and_keeps_the_history(self, target: TargetEngine) -> None:
        """What is cached is nothing, and computing it again gives what was there."""
        prompt = tiny_models.prompt(np.random.default_rng(8), 40)
        target.open("s", "me", request(prompt))
        first = target.step([member(target, "s")])[0].next_token
        target.evict("s")
        assert (target.num_cached_tokens("s"), list(target.history("s"))) == (0, [*prompt, first])
        target.step([StepMember("s", 16)])
        assert target.num_cached_tokens("s") == 16
        target.close("s")
        with pytest.raises(EngineError, match="no session"):
            target.history("s")

    def test_logprobs_are_those_of_a_plain_forward_pass(self, checkpoint: Checkpoint, target: TargetEngine) -> None:
        """Of the raw logits, for committed tokens and their alternatives."""
        tokens = checkpoint.truth(np.random.default_rng(9), 9, 6)
        target.open("s", "me", request(tokens[:9], sampling=SamplingParams(num_top_logprobs=3)))
        outcome = target.step([member(target, "s", tokens[9:14])])[0]
        with torch.inference_mode():
            expected = checkpoint.plain(torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)[8:]
        assert outcome.num_accepted == 5
        for row, token, got in zip(expected[:6], tokens[9:], outcome.logprobs, strict=True):
            assert got.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert [one for one, _ in got.top] == row.topk(3).indices.tolist()
        target.close("s")

    def test_a_generation_ends_at_a_stop_token_and_at_max_tokens(
        self, checkpoint: Checkpoint, target: TargetEngine
    ) -> None:
        """Inside an accepted draft too."""
        tokens = checkpoint.truth(np.random.default_rng(10), 12, 12)
        stop = tokens[16]
        end = tokens.index(stop, 12) + 1
        target.open("s", "me", request(tokens[:12], stop=frozenset({stop})))
        outcome = target.step([member(target, "s", tokens[12:20])])[0]
        assert (outcome.finish_reason, list(target.history("s"))) == ("stop", tokens[:end])
        target.open("s", "me", request(tokens[:12], max_tokens=5))
        outcome = target.step([member(target, "s", tokens[12:20])])[0]
        assert (outcome.finish_reason, list(target.history("s"))) == ("length", tokens[:17])
        target.close("s")

    def test_unknown_ids_in_a_draft_are_not_computed(self, checkpoint: Checkpoint, target: TargetEngine) -> None:
        """A device may send anything: what cannot be accepted ends its draft."""
        tokens = checkpoint.truth(np.random.default_rng(11), 10, 2)
        for unknown in (tiny_models.VOCABULARY_SIZE, -1, 1 << 40):
            target.open("s", "me", request(tokens[:10]))
            outcome = target.step([member(target, "s", (tokens[10], unknown, 7))])[0]
            assert (outcome.num_verified, outcome.num_accepted, outcome.next_token) == (1, 1, tokens[11])
        target.close("s")

    def test_what_cannot_be_served_is_refused(self, target: TargetEngine) -> None:
        """A prompt with unknown ids, and more tokens than the context has."""
        for wrong, field in ((request((5, 96)), "prompt"), (request((5,) * 200, max_tokens=57), "max_tokens")):
            with pytest.raises(InvalidRequest) as caught:
                target.open("refused", "me", wrong)
            assert caught.value.field == field

    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("rule", AcceptanceRule)
    def test_what_is_sampled_follows_the_targets_distribution(
        self, checkpoint: Checkpoint, target: TargetEngine, rule: AcceptanceRule
    ) -> None:
        """The first two tokens, jointly, after a draft that is right half of the time."""
        prompt = tiny_models.prompt(np.random.default_rng(12), 6)
        params = SamplingParams(temperature=0.6, top_k=6, rule=rule)
        pairs, exact = _pairs(checkpoint.plain, prompt, params)
        draft = max(exact, key=lambda pair: exact[pair])[:1]
        counts = dict.fromkeys(pairs, 0)
        for start in range(0, self.num_draws, self.draws_at_once):
            names = [f"draw {i}" for i in range(self.draws_at_once)]
            for index, name in enumerate(names):
                seeded = replace(params, seed=start + index + 1)
                target.open(name, "me", request(prompt, 2, seeded))
            running = names
            while running:
                outcomes = target.step([member(target, name, draft) for name in running])
                ended = zip(running, outcomes, strict=True)
                running = [name for name, outcome in ended if outcome.finish_reason is None]
            for name in names:
                counts[tuple(target.history(name)[len(prompt) :])] += 1  # type: ignore[index]
        for name in names:
            target.close(name)
        assert p_value([counts[pair] for pair in pairs], [exact[pair] for pair in pairs]) > FALSE_ALARM


def _pairs(
    plain: Any, prompt: tuple[int, ...], params: SamplingParams
) -> tuple[list[tuple[int, int]], dict[tuple[int, int], float]]:
    """Every pair of next tokens, and its exact probability."""
    every = range(tiny_models.VOCABULARY_SIZE)
    with torch.inference_mode():
        inputs = torch.tensor([[*prompt, token] for token in every])
        logits = plain(inputs, use_cache=False).logits[:, -2:].double()
    first = _truncated(logits[0, 0], params)
    second = [_truncated(logits[token, 1], params) for token in every]
    exact = {(a, b): float(first[a] * second[a][b]) for a in every for b in every}
    return list(exact), exact


def _truncated(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution under temperature and top-k, written down independently of the sampler."""
    scaled = logits / params.temperature
    kept = scaled.topk(params.top_k).indices
    return torch.full_like(scaled, -torch.inf).scatter(0, kept, scaled[kept]).softmax(0)


class PressureContract(EngineContract):
    """A KV cache that is too small for all."""

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(cls, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
        return Checkpoint.of(tmp_path_factory.mktemp("pressure"), "llama")

    @pytest.fixture
    def target(self, checkpoint: Checkpoint, small_target: TargetEngine) -> Iterator[TargetEngine]:
        self.opened: list[str] = []
        yield small_target
        for session_id in self.opened:
            small_target.close(session_id)

    @pytest.fixture(scope="class")
    @classmethod
    def small_target(cls, checkpoint: Checkpoint) -> Iterator[TargetEngine]:
        target = cls.load(checkpoint.folder, 512)
        yield target
        target.shutdown()

    def open(self, target: TargetEngine, session_id: str, tokens: list[int], max_tokens: int) -> None:
        target.open(session_id, "me", request(tokens, max_tokens))
        self.opened.append(session_id)

    def test_closed_sessions_make_room_and_open_ones_do_not(self, checkpoint: Checkpoint, target: TargetEngine) -> None:
        """A step that does not fit is refused before anything is computed; a session that is closed or evicted frees."""
        rng = np.random.default_rng(13)
        num = target.kv_capacity_tokens // 200 + 1
        truth = {f"full {i}": checkpoint.truth(rng, 190, 8) for i in range(num)}
        for session_id, tokens in truth.items():
            self.open(target, session_id, tokens[:190], 8)
        *fitting, last = truth
        for session_id in fitting:
            target.step([member(target, session_id)])
        with pytest.raises(EngineError, match="full"):
            target.step([member(target, last)])
        assert (target.num_cached_tokens(last), target.num_cached_tokens(fitting[0])) == (0, 190)
        target.evict(fitting[0])
        assert target.step([member(target, last, truth[last][190:194])])[0].num_accepted == 4
        target.evict(last)
        finish(target, fitting[0])
        assert list(target.history(fitting[0])) == truth[fitting[0]]

    def test_a_generation_that_is_given_up_frees_its_cache(self, checkpoint: Checkpoint, target: TargetEngine) -> None:
        """Ten times over, in the middle of prompt and answer."""
        rng = np.random.default_rng(14)
        for index in range(10):
            session_id, tokens = f"given up {index}", checkpoint.truth(rng, 200, 4)
            self.open(target, session_id, tokens[:200], 4)
            target.step([StepMember(session_id, 100)])
            if index % 2:
                target.step([member(target, session_id, tokens[200:202])])
            target.close(self.opened.pop())

    def test_the_scheduler_keeps_the_cache_within_its_capacity(
        self, checkpoint: Checkpoint, target: TargetEngine
    ) -> None:
        """Six sessions, a cache for two or three: admission and evictions suffice, and the tokens stay right."""
        limits = SchedulerLimits(
            kv_capacity_tokens=target.kv_capacity_tokens, kv_page_tokens=target.kv_page_tokens, max_prefill_tokens=64
        )
        scheduler = FCFSScheduler(limits)
        rng = np.random.default_rng(15)
        truth = {f"six {i}": checkpoint.truth(rng, 90 + 15 * i, 24) for i in range(6)}
        for session_id, tokens in truth.items():
            self.open(target, session_id, tokens[:-24], 24)
            scheduler.add(arrival(target, session_id, 0.0))
        for now in range(1, 400):
            if not isinstance(batch := scheduler.schedule(float(now)), Batch):
                break
            for session_id in scheduler.evictions():
                target.evict(session_id)
            outcomes = target.step(as_members(batch, target, truth))
            for one, outcome in zip(batch.members, outcomes, strict=True):
                session_id = one.request.session_id
                scheduler.cached(session_id, target.num_cached_tokens(session_id), float(now))
                if outcome.finish_reason is not None:
                    scheduler.release(session_id)
                    target.evict(session_id)
                elif one.completes:
                    scheduler.add(arrival(target, session_id, float(now)))
        assert {session_id: list(target.history(session_id)) for session_id in truth} == truth
