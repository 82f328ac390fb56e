"""WISP's acceptance rules in the place of vLLM's sampler: what runs inside vLLM's workers.

vLLM's samplers are not used at all: under speculation they refuse some parameters, ignore custom logits processors and
draw from generators of their own. Every worker has all logits, and the noise is a hash, so all workers of a
tensor-parallel group decide alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wisp.engines.processing import SamplingItem
from wisp.engines.sampling import Decision, verify
from wisp.errors import UnsupportedModel
from wisp.types import DraftedToken, SamplingParams

_USED = (
    "_calc_spec_decode_metadata",
    "execute_model_state",
    "input_batch",
    "requests",
    "sample_tokens",
    "speculative_config",
)
"""Of vLLM's model runner."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a step has to decide for one request; its history is in the worker's batch already."""

    num_prompt_tokens: int
    params: SamplingParams
    draft: tuple[DraftedToken, ...]
    trimmed: DraftedToken | None


class NoProposer:
    """Stands where vLLM expects a drafter: drafts come from devices."""

    def __init__(self, vllm_config: object) -> None:
        del vllm_config

    def load_model(self, target_model: object) -> None:
        """Nothing to load."""

    def propose(self, sampled: Sequence[object], *_: object, **__: object) -> list[list[int]]:
        """No drafts."""
        return [[] for _ in sampled]


class WorkerExtension:
    """Mixed into vLLM's worker class, whichever it is."""

    model_runner: Any

    def install_wisp_sampler(self, vocabulary_size: int) -> None:
        """Take over sampling. Raises UnsupportedModel where the model runner is not the one this was written for."""
        missing = [name for name in _USED if not hasattr(self.model_runner, name)]
        if missing:
            raise UnsupportedModel(f"this version of vLLM has another model runner: it lacks {', '.join(missing)}")
        runner = self.model_runner
        runner.sample_tokens = StepSampler(runner, vocabulary_size)
        runner._calc_spec_decode_metadata = partial(LogitsRows.of, runner.device)  # noqa: SLF001 - of vLLM


@dataclass(frozen=True, slots=True)
class LogitsRows:
    """In the place of vLLM's SpecDecodeMetadata: what its own samplers want beside this is not computed."""

    logits_indices: torch.Tensor
    """The positions of the step that logits are computed of."""

    @classmethod
    def of(cls, device: torch.device, num_drafted: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> LogitsRows:
        """The last k + 1 positions of a request with k drafted tokens; its positions end before `ends`. Both [requests]."""
        num_rows = num_drafted + 1
        row_ends = num_rows.cumsum()
        indices = np.arange(row_ends[-1]) + np.repeat(ends - row_ends, num_rows)
        return cls(torch.from_numpy(indices).to(device))


class StepSampler:
    """Takes the place of the model runner's `sample_tokens`."""

    def __init__(self, runner: Any, vocabulary_size: int) -> None:
        self._runner = runner
        self._original = runner.sample_tokens
        self._vocabulary_size = vocabulary_size

    @torch.inference_mode()
    def __call__(self, grammar_output: object = None) -> Any:
        """Decide a step whose logits are there; its decisions are the output's `wisp_decisions`, by request id."""
        from vllm.v1.outputs import ModelRunnerOutput

        runner = self._runner
        state, runner.execute_model_state = runner.execute_model_state, None
        if state is None:  # not the last stage of a pipeline
            return self._original(grammar_output)
        req_ids: list[str] = runner.input_batch.req_ids
        decisions = self._decide(state.logits, req_ids, state.scheduler_output.wisp_verifications)
        self._commit(decisions, state.scheduler_output.wisp_verifications)
        output = ModelRunnerOutput(req_ids=list(req_ids), req_id_to_index=dict(runner.input_batch.req_id_to_index))
        output.wisp_decisions = decisions
        return output

    def _decide(
        self, logits: torch.Tensor, req_ids: Sequence[str], verifications: Mapping[str, Verification]
    ) -> dict[str, Decision]:
        """`logits` [rows, vocabulary]: k + 1 rows of a request with k drafted tokens, one of any other."""
        items: list[SamplingItem] = []
        rows: list[int] = []
        start = 0
        for index, req_id in enumerate(req_ids):
            asked = verifications.get(req_id)
            num_rows = 1 if asked is None else 1 + len(asked.draft)
            if asked is not None:
                items.append(self._item(index, asked))
                rows.extend(range(start, start + num_rows))
            start += num_rows
        if not items:
            return {}
        wanted = logits if len(rows) == start else logits[torch.tensor(rows, device=logits.device)]
        names = [req_id for req_id in req_ids if req_id in verifications]
        return dict(zip(names, verify(wanted, items, self._vocabulary_size), strict=True))

    def _item(self, index: int, asked: Verification) -> SamplingItem:
        batch = self._runner.input_batch
        history = batch.token_ids_cpu[index, : batch.num_tokens_no_spec[index]]
        return SamplingItem(history, asked.num_prompt_tokens, asked.params, asked.draft, asked.trimmed)

    def _commit(self, decisions: Mapping[str, Decision], verifications: Mapping[str, Verification]) -> None:
        """Write down what was decided where the next step reads its input from."""
        batch = self._runner.input_batch
        for req_id, decision in decisions.items():
            accepted = verifications[req_id].draft[: decision.num_accepted]
            tokens = [*(drafted.token for drafted in accepted), decision.next_token]
            index = batch.req_id_to_index[req_id]
            start = int(batch.num_tokens_no_spec[index])
            end = start + len(tokens)
            batch.token_ids_cpu[index, start:end] = tokens
            batch.is_token_ids[index, start:end] = True
            batch.num_tokens_no_spec[index] = end
            self._runner.requests[req_id].output_token_ids.extend(tokens)
