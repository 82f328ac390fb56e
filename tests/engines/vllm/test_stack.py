"""`wisp serve --engine vllm` and `wisp edge` as their users run them, and the `openai` client."""

from __future__ import annotations

import asyncio

import pytest
from openai import AsyncOpenAI

from tests.engines.vllm import needs_vllm
from wisp.demo.pair import DRAFT, TARGET, heldout_prompts
from wisp.demo.processes import command
from wisp.demo.proof import own_greedy_decoding
from wisp.edge.tokenizer import parse

pytestmark = [needs_vllm, pytest.mark.timeout(300)]

NUM_TOKENS = 32
EOS = 0


async def test_clients_get_the_targets_own_text() -> None:
    """Streams side by side, drafted on a device and verified by vLLM: each is what `generate` of transformers writes."""
    prompts = [prompt.text for prompt in heldout_prompts()[:4]]
    server = ["serve", str(TARGET), "--engine", "vllm", "--kv-gib", "0.1", "--port", "0"]
    async with (
        command(server) as serving,
        command(["edge", "--server", serving["address"], "--draft", str(DRAFT), "--port", "0"]) as edge,
        AsyncOpenAI(base_url=edge["url"], api_key="none", max_retries=0) as client,
    ):
        answers = await asyncio.gather(*(streamed(client, prompt) for prompt in prompts))
    tokenizer = parse((TARGET / "tokenizer.json").read_bytes())
    encoded = [tokenizer.encode(prompt).ids for prompt in prompts]
    own = own_greedy_decoding(TARGET, encoded, NUM_TOKENS, frozenset({EOS}))
    assert [text for text, _ in answers] == [tokenizer.decode(tokens) for tokens in own]
    assert sum(accepted for _, accepted in answers) > NUM_TOKENS


async def streamed(client: AsyncOpenAI, prompt: str) -> tuple[str, int]:
    """A greedy completion, and how many of its tokens were drafted."""
    text, accepted = "", 0
    chunks = await client.completions.create(
        model="wisp",
        prompt=prompt,
        max_tokens=NUM_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in chunks:
        text += "".join(choice.text for choice in chunk.choices)
        if chunk.usage is not None:
            details = chunk.usage.completion_tokens_details
            accepted = (details and details.accepted_prediction_tokens) or 0
    return text, accepted
