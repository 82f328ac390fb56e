"""vLLM by itself, for comparison: `python -m tests.engines.vllm.plain` reads jobs on standard input, writes tokens.

A job is {"model": folder, "prompts": [[id]], "max_tokens": n}; the answer is a list of lists of ids, greedy, in float32.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wisp.engines.vllm.settings import VllmSettings, environment


def generate(folder: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """What vLLM's own continuous batching makes of the prompts, in a process of its own."""
    job = {"model": str(folder), "prompts": [list(prompt) for prompt in prompts], "max_tokens": max_tokens}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm.plain"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment(VllmSettings(str(folder)))},
    )
    tokens: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return tokens


def main() -> None:
    from vllm import LLM, SamplingParams

    job = json.load(sys.stdin)
    llm = LLM(job["model"], dtype="float32", enforce_eager=True, max_num_seqs=8, kv_cache_memory_bytes=32 << 20)
    params = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"], ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in job["prompts"]], params, use_tqdm=False)
    sys.stdout.write(json.dumps([list(output.outputs[0].token_ids) for output in outputs]) + "\n")


if __name__ == "__main__":
    main()
