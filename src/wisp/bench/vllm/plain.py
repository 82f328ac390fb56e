"""vLLM by itself in a process of its own: its scheduler, its continuous batching, its sampler; nothing of WISP's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from wisp.engines.vllm import child
from wisp.engines.vllm.settings import VllmSettings
from wisp.errors import EngineError
from wisp.types import TokenId

_NOT_PLAIN = ("worker_extension_cls", "speculative_config", "async_scheduling", "disable_hybrid_kv_cache_manager")
"""What WISP sets and plain vLLM decides by itself."""


class PlainVllm:
    """Greedy decoding with vLLM's own LLM class, set up as `settings` set up WISP's engine, without a prefix cache."""

    def __init__(self, settings: VllmSettings) -> None:
        self._process, self._connection = child.start("wisp.bench.vllm.plain", settings)
        self._exchange(settings)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def generate(self, prompts: Sequence[Sequence[TokenId]], num_tokens: int) -> list[list[TokenId]]:
        """`num_tokens` tokens for each prompt, all prompts at once; no token ends a text earlier."""
        outputs: list[list[TokenId]] = self._exchange(([list(prompt) for prompt in prompts], num_tokens))
        return outputs

    def close(self) -> None:
        """End the process."""
        child.end(self._process, self._connection)

    def _exchange(self, message: object) -> Any:
        try:
            self._connection.send(message)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineError(f"plain vLLM ended with status {self._process.wait()}") from error


def serve(descriptor: int) -> None:
    """Load what the first message says, then answer until the other side is gone."""
    connection = Connection(descriptor)
    llm = _load(connection.recv())
    connection.send(None)
    while True:
        try:
            prompts, num_tokens = connection.recv()
        except EOFError:
            return
        connection.send(_generate(llm, prompts, num_tokens))


def _load(settings: VllmSettings) -> Any:
    from vllm import LLM

    from wisp.engines.vllm.load import machine_arguments

    arguments = machine_arguments(settings)
    for name in _NOT_PLAIN:
        del arguments[name]
    return LLM(**{**arguments, "enable_prefix_caching": False})


def _generate(llm: Any, prompts: list[list[TokenId]], num_tokens: int) -> list[list[TokenId]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(int(sys.argv[1]))
