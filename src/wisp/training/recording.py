"""Records a trace: the target's own output, and the draft chain that starts at each of its positions.

Under greedy and coupled acceptance the target's choice at a position depends on the tokens before it alone, so a chain
is accepted as far as it equals the output. Under rejection sampling the target engine judges every chain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from wisp.engines.base import DraftEngine, StepMember, TargetEngine
from wisp.formats.trace import Chain, TraceHeader, TraceRecord
from wisp.types import (
    AcceptanceRule,
    DraftedToken,
    DraftStats,
    GenerationRequest,
    SamplingParams,
    StopRules,
    TokenId,
)

_UNKNOWN = DraftStats(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in tokens."""

    index: int
    name: str
    tokens: tuple[TokenId, ...]


@dataclass(slots=True)
class Recorder:
    """Records prompts with one pair of engines; positions of an output are drafted on together."""

    target: TargetEngine
    drafter: DraftEngine
    header: TraceHeader
    batch: int = 64
    """Chains drafted, and chains judged, at once."""
    clock: Callable[[], float] = time.perf_counter

    def record(self, prompts: Sequence[EncodedPrompt]) -> Iterator[TraceRecord]:
        """One record per prompt; the prompts are generated together."""
        requests = [self._request(prompt) for prompt in prompts]
        started = self.clock()
        outputs = self._generate(requests)
        num_steps = max(len(output) for output in outputs)
        target_token_s = (self.clock() - started) / num_steps / len(prompts)
        for prompt, request, output in zip(prompts, requests, outputs, strict=True):
            draft_token_s = self._time_alone(request, output)
            chains = self._chains(request, output)
            tokens = (*prompt.tokens, *output)
            yield TraceRecord(
                prompt.index, prompt.name, tokens, len(prompt.tokens), chains, target_token_s, draft_token_s
            )

    def _request(self, prompt: EncodedPrompt) -> GenerationRequest:
        header = self.header
        rule = AcceptanceRule.REJECTION if header.rule == "rejection" else AcceptanceRule.COUPLED
        sampling = SamplingParams(header.temperature, top_p=header.top_p, seed=header.seed + prompt.index, rule=rule)
        stop = StopRules(header.max_tokens, frozenset(self.target.card.eos_token_ids))
        return GenerationRequest(prompt.tokens, len(prompt.tokens), sampling, stop)

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[list[TokenId]]:
        """The target's own outputs, by plain decoding."""
        running = {f"output-{index}": request for index, request in enumerate(requests)}
        for name, request in running.items():
            self.target.open(name, "", request)
        outputs: dict[str, list[TokenId]] = {name: [] for name in running}
        while running:
            outcomes = self.target.step([self._plain_step(name) for name in running])
            for name, outcome in zip(list(running), outcomes, strict=True):
                if outcome.next_token is not None:
                    outputs[name].append(outcome.next_token)
                if outcome.finish_reason is not None:
                    del running[name]
        for name in outputs:
            self.target.close(name)
        return list(outputs.values())

    def _plain_step(self, name: str, draft: tuple[DraftedToken, ...] = ()) -> StepMember:
        missing = len(self.target.history(name)) - 1 - self.target.num_cached_tokens(name)
        return StepMember(name, missing, draft)

    def _time_alone(self, request: GenerationRequest, output: Sequence[TokenId]) -> float:
        """Seconds per token of one session; afterwards the drafter has cached all prefixes of the output."""
        self.drafter.open("alone", _after(request, output[:-1]))
        self.drafter.draft(["alone"])
        started = self.clock()
        num_drafted = sum(self.drafter.draft(["alone"])[0] is not None for _ in range(self.header.chain_length - 1))
        elapsed = self.clock() - started
        self.drafter.close("alone")
        return elapsed / max(num_drafted, 1)

    def _chains(self, request: GenerationRequest, output: Sequence[TokenId]) -> tuple[Chain, ...]:
        chains: list[Chain] = []
        for first in range(0, len(output), self.batch):
            positions = range(first, min(first + self.batch, len(output)))
            drafts = self._drafts(request, output, positions)
            judge = self._judged_by_engine if self._by_rejection else _judged_by_equality
            chains += judge(request, output, positions, drafts)
        return tuple(chains)

    def _drafts(
        self, request: GenerationRequest, output: Sequence[TokenId], positions: range
    ) -> list[tuple[DraftedToken, ...]]:
        """What is drafted after each number of output tokens; the longest prefix first, so that the others copy it."""
        for position in reversed(positions):
            self.drafter.open(str(position), _after(request, output[:position]))
        names = [str(position) for position in positions]
        drafts: list[list[DraftedToken]] = [[] for _ in names]
        for _ in range(self.header.chain_length):
            for draft, drafted in zip(drafts, self.drafter.draft(names), strict=True):
                if drafted is not None:
                    draft.append(drafted)
        for name in names:
            self.drafter.close(name)
        return [tuple(draft) for draft in drafts]

    @property
    def _by_rejection(self) -> bool:
        return self.header.rule == "rejection"

    def _judged_by_engine(
        self,
        request: GenerationRequest,
        output: Sequence[TokenId],
        positions: range,
        drafts: Sequence[tuple[DraftedToken, ...]],
    ) -> list[Chain]:
        names = [f"chain-{position}" for position in positions]
        for name, position in zip(names, positions, strict=True):
            self.target.open(name, "", _after(request, output[:position]))
        outcomes = self.target.step([self._plain_step(*pair) for pair in zip(names, drafts, strict=True)])
        for name in names:
            self.target.close(name)
        chains = []
        for draft, outcome in zip(drafts, outcomes, strict=True):
            rejected = outcome.num_accepted < outcome.num_verified and outcome.next_token is not None
            chains.append(_chain(draft, outcome.num_accepted, outcome.num_accepted + rejected))
        return chains


def _judged_by_equality(
    request: GenerationRequest,
    output: Sequence[TokenId],
    positions: range,
    drafts: Sequence[tuple[DraftedToken, ...]],
) -> list[Chain]:
    chains = []
    for position, draft in zip(positions, drafts, strict=True):
        own = output[position:]
        matches = [drafted.token == token for drafted, token in zip(draft, own, strict=False)]
        num_accepted = matches.index(False) if False in matches else len(matches)
        chains.append(_chain(draft, num_accepted, min(num_accepted + 1, len(matches))))
    return chains


def _chain(draft: Sequence[DraftedToken], num_accepted: int, num_judged: int) -> Chain:
    stats = tuple(_UNKNOWN if drafted.stats is None else drafted.stats for drafted in draft)
    return Chain(tuple(drafted.token for drafted in draft), stats, num_accepted, num_judged)


def _after(request: GenerationRequest, output: Sequence[TokenId]) -> GenerationRequest:
    tokens = (*request.tokens, *output)
    return GenerationRequest(tokens, request.num_prompt_tokens, request.sampling, request.stop)
