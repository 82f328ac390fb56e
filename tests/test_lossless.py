"""The promise, through the whole stack: openai client, device, gRPC, server, engine; real models in float32.

Greedy text is that of transformers' own `generate`; seeded samples are those of the server without drafts. Drafters are
the target with noise on its weights, so that drafts are accepted and rejected in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.edge.endpoint import Setup, everything, server_config
from tests.edge.test_stop_rules import saved_predictor
from tests.engines import tiny_models
from wisp.config import STOP_RULES, EdgeConfig, ModelConfig, with_system
from wisp.engines.co_located import CoLocatedTarget
from wisp.engines.drafter import TransformersDrafter
from wisp.engines.target import TransformersTarget
from wisp.formats.trace import PairIdentity
from wisp.policy.systems import SYSTEMS
from wisp.types import GenerationRequest

ARCHITECTURES = ("llama", "qwen3", "mistral", "gemma2", "phi3", "gpt_oss", "gpt2")
NUM_TOKENS = 64
NOISE = 0.1
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.3, "top_p": 0.9, "seed": 2**40 + 1, "n": 2},
    {"temperature": 0.7, "presence_penalty": 0.6, "frequency_penalty": 0.4, "seed": 5, "n": 2},
    {"temperature": 1.0, "logit_bias": {"7": 3.0, "8": -100}, "seed": 6, "extra_body": {"top_k": 12, "min_p": 0.02}},
    {"temperature": 0, "presence_penalty": 0.5, "extra_body": {"repetition_penalty": 1.3}},
)


class CountingTarget(TransformersTarget):
    """Remembers how much of each opened history was in the cache."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cached: list[int] = []

    def open(self, session_id: str, owner: str, request: GenerationRequest) -> int:
        self.cached.append(super().open(session_id, owner, request))
        return self.cached[-1]


def noisy_drafter(name: str) -> TransformersDrafter:
    """The target with noise on its weights."""
    loaded = tiny_models.loaded(name)
    generator = torch.Generator().manual_seed(1)
    for parameter in loaded.packed.model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(noise, alpha=NOISE * float(parameter.std(correction=0)))
    return TransformersDrafter(loaded)


@asynccontextmanager
async def stack(cache: Path, name: str) -> AsyncGenerator[Setup, None]:
    """Everything, with small batches and small chunks of prompts."""
    server = server_config(max_prefill_tokens=24, max_batch_tokens=40)
    target: Any = CountingTarget(tiny_models.loaded(name))
    drafter: Any = noisy_drafter(name)
    async with everything(cache, target, drafter, server, max_draft_tokens=4) as setup:
        yield setup


def prompts(lengths: Sequence[int] = (5, 17, 40, 70)) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [list(tiny_models.prompt(rng, length)) for length in lengths]


async def complete(setup: Setup, prompt: Sequence[int], **fields: Any) -> Any:
    extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
    model = setup.endpoint.device.target.model_id
    values = {"temperature": 0, "max_tokens": NUM_TOKENS, "logprobs": 0, **fields}
    return await setup.client.completions.create(model=model, prompt=list(prompt), extra_body=extra, **values)


def tokens_of(answer: Any) -> list[list[str]]:
    return [choice.logprobs.tokens for choice in answer.choices]


@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_greedy_is_generate(tmp_path: Path, name: str) -> None:
    """Every text is what `generate` of transformers writes, whatever was drafted, in batches of unlike requests."""
    plain = tiny_models.model(name)
    async with stack(tmp_path, name) as setup:
        asked = [
            complete(setup, prompt, extra_body={"wisp": {"draft_tokens": num_drafted}})
            for prompt, num_drafted in zip(prompts(), (8, 4, 1, 6), strict=True)
        ]
        answers = await asyncio.gather(*asked)
    decode = setup.endpoint.device.tokenizer.decode
    for answer, prompt in zip(answers, prompts(), strict=True):
        own = tiny_models.generate(plain, prompt, NUM_TOKENS)
        assert decode(prompt) + answer.choices[0].text == decode(prompt + own)
        assert answer.usage.completion_tokens == NUM_TOKENS
    details = [answer.usage.completion_tokens_details for answer in answers]
    assert sum(each.accepted_prediction_tokens for each in details) > 0
    assert sum(each.rejected_prediction_tokens for each in details) > 0


@asynccontextmanager
async def stack_of(cache: Path, system: str) -> AsyncGenerator[Setup, None]:
    """Everything as a system has it; its devices' part by the name of the system, as `wisp edge --system` does."""
    drafts_here = SYSTEMS[system].drafts.on_server
    config = server_config(
        max_prefill_tokens=24,
        max_batch_tokens=40,
        system=system,
        draft=ModelConfig("noisy") if drafts_here else None,
        calibrate=False,
        scheduler_settings={"max_load": 1e9} if SYSTEMS[system].estimates else {},  # nobody is to be refused
    )
    target: Any = TransformersTarget(tiny_models.loaded("llama"))
    drafter: Any = noisy_drafter("llama")
    path = saved_predictor(
        cache, PairIdentity("llama", target.card.weights, "llama", drafter.weights, drafter.vocabulary)
    )
    engine = CoLocatedTarget(target, noisy_drafter("llama")) if drafts_here else target
    device = with_system(EdgeConfig("here:1", predictor=path), system)
    drafting = {name: getattr(device, name) for name in ("max_draft_tokens", "stop_rule", "stop_threshold")}
    async with everything(cache, engine, drafter, config, predictor=path, **drafting) as setup:
        yield setup


async def texts_of(cache: Path, system: str, **of_request: Any) -> list[list[str]]:
    """Tokens of greedy and of sampled completions, asked for all at once."""
    samplings = ({"temperature": 0}, {"temperature": 1.1, "seed": 9}, {"temperature": 0.9, "seed": 4, "top_p": 0.9})
    async with stack_of(cache, system) as setup:
        asked = [
            complete(setup, prompt, **sampling, extra_body={"wisp": of_request} if of_request else {})
            for prompt in prompts()
            for sampling in samplings
        ]
        return [tokens for answer in await asyncio.gather(*asked) for tokens in tokens_of(answer)]


@pytest.fixture(scope="module")
def plain_texts(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What the target writes by itself; `test_greedy_is_generate` ties it to transformers."""
    return asyncio.run(texts_of(tmp_path_factory.mktemp("plain"), "centralized"))


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "centralized"])
async def test_every_system_writes_the_targets_text(tmp_path: Path, system: str, plain_texts: list[list[str]]) -> None:
    """Batches, drafts and cuts of every row of the table: greedy and seeded text stays what the target writes alone."""
    assert await texts_of(tmp_path, system) == plain_texts


@pytest.mark.parametrize("rule", STOP_RULES)
async def test_every_stop_rule_leaves_the_targets_text(tmp_path: Path, rule: str, plain_texts: list[list[str]]) -> None:
    """Asked for by the request, under the scheduler that cuts drafts."""
    assert await texts_of(tmp_path, "wisp-plus", stop_rule=rule) == plain_texts


@pytest.mark.parametrize("sampling", SAMPLING, ids="-".join)
async def test_seeded_output_is_that_of_the_server_without_drafts(tmp_path: Path, sampling: dict[str, Any]) -> None:
    """With a seed, drafts change the speed and nothing else: temperature, truncation, penalties, biases, n choices."""
    extra = sampling.get("extra_body", {})
    async with stack(tmp_path, "llama") as setup:
        for prompt in prompts():
            plain = await complete(setup, prompt, **{**sampling, "extra_body": {**extra, "wisp": {"draft_tokens": 0}}})
            drafted = await complete(setup, prompt, **sampling)
            assert tokens_of(drafted) == tokens_of(plain)
            assert [choice.text for choice in drafted.choices] == [choice.text for choice in plain.choices]
            assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0
            assert drafted.usage.completion_tokens_details.accepted_prediction_tokens > 0


async def test_logprobs_are_those_of_a_plain_forward_pass(tmp_path: Path) -> None:
    """Within 1e-4 of the log-softmax of the model's logits, for tokens that were drafted and tokens that were not."""
    plain = tiny_models.model("qwen3")
    async with stack(tmp_path, "qwen3") as setup:
        answers = [await complete(setup, prompt) for prompt in prompts()]
    for answer, prompt in zip(answers, prompts(), strict=True):
        own = tiny_models.generate(plain, prompt, NUM_TOKENS)
        with torch.inference_mode():
            logits = plain(torch.tensor([prompt + own])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(own)[:, None])[:, 0]
        assert answer.choices[0].logprobs.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)


async def test_a_next_turn_finds_the_last_one_in_the_cache(tmp_path: Path) -> None:
    """A prompt that continues an earlier request of the same credential is prefilled from where that one ended."""
    async with stack(tmp_path, "llama") as setup:
        prompt = prompts()[2]
        await complete(setup, prompt)
        own = tiny_models.generate(tiny_models.model("llama"), prompt, NUM_TOKENS)
        await complete(setup, [*prompt, *own, 5, 6, 7])
        target: Any = setup.target
        assert target.cached[0] == 0
        assert target.cached[1] >= len(prompt) + NUM_TOKENS - 1
