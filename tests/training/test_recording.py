"""Traces of the fake pair and of tiny models: outputs are the target's own, labels what verification says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.engines import tiny_models
from tests.fakes import FakeDrafter, FakeTarget, generate
from tests.training.traces import header
from wisp.config import ModelConfig
from wisp.engines.base import StepMember
from wisp.engines.drafter import TransformersDrafter
from wisp.engines.fingerprint import weights_fingerprint
from wisp.engines.target import TransformersTarget
from wisp.errors import ConfigError, FormatError
from wisp.formats.trace import read_trace
from wisp.training.recording import EncodedPrompt, Recorder
from wisp.training.trace_command import TraceConfig, run_trace
from wisp.types import DraftedToken

PROMPTS = [EncodedPrompt(0, "a", (1, 2, 3)), EncodedPrompt(1, "b", (4, 5))]


def test_outputs_are_the_targets_own_and_labels_stop_at_the_first_rejection() -> None:
    """Every position has a chain; it is accepted as far as it equals the output."""
    records = list(Recorder(FakeTarget(), FakeDrafter(), header(), batch=7).record(PROMPTS))
    for prompt, record in zip(PROMPTS, records, strict=True):
        recorder = Recorder(FakeTarget(), FakeDrafter(), header())
        output = generate(recorder._request(prompt))
        assert list(record.tokens) == [*prompt.tokens, *output]
        assert len(record.chains) == len(output) == 24
        for position, chain in enumerate(record.chains):
            own = output[position : position + 12]
            assert list(chain.tokens[: chain.num_accepted]) == own[: chain.num_accepted]
            assert chain.num_judged == min(chain.num_accepted + 1, len(own))
            if chain.rejected:
                assert chain.tokens[chain.num_accepted] != own[chain.num_accepted]
    assert 0.6 < np.mean([chain.num_accepted / chain.num_judged for record in records for chain in record.chains]) < 0.9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equality_is_what_the_target_engine_says(temperature: float) -> None:
    """Greedy and coupled chains of a tiny model, judged by its own verification."""
    target = TransformersTarget(tiny_models.loaded("llama"))
    drafter = TransformersDrafter(tiny_models.loaded("llama", seed=1))
    given = header("coupled", temperature, max_tokens=10)
    recorder = Recorder(target, drafter, given, batch=4)
    prompt = EncodedPrompt(0, "a", tiny_models.prompt(np.random.default_rng(0), 20))
    [record] = recorder.record([prompt])
    output = record.tokens[20:]
    for position, chain in enumerate(record.chains):
        request = recorder._request(EncodedPrompt(0, "", prompt.tokens))
        target.open("x", "", type(request)((*prompt.tokens, *output[:position]), 20, request.sampling, request.stop))
        draft = tuple(DraftedToken(token) for token in chain.tokens)
        missing = 20 + position - 1 - target.num_cached_tokens("x")
        [outcome] = target.step([StepMember("x", missing, draft)])
        assert outcome.num_accepted == min(chain.num_accepted, 10 - position - 1) or chain.num_accepted == 10 - position
        target.close("x")


def test_under_rejection_sampling_the_target_judges() -> None:
    """A drafter of the same weights proposes from p itself, so everything is accepted up to the end of the output."""
    target = TransformersTarget(tiny_models.loaded("llama"))
    drafter = TransformersDrafter(tiny_models.loaded("llama"))
    recorder = Recorder(target, drafter, header("rejection", 0.7, max_tokens=8), batch=3)
    [record] = recorder.record([EncodedPrompt(0, "a", tiny_models.prompt(np.random.default_rng(0), 9))])
    shares = [chain.num_accepted / max(chain.num_judged, 1) for chain in record.chains[:-1]]
    assert np.mean(shares) > 0.8
    assert record.chains[-1].num_judged == 0


def test_fingerprints_tell_weights_apart() -> None:
    """The same weights have one fingerprint in any type, others another."""
    model = tiny_models.model("llama")
    first = weights_fingerprint(model)
    assert weights_fingerprint(tiny_models.model("llama").bfloat16()) == first
    assert weights_fingerprint(tiny_models.model("llama", seed=1)) != first


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two prompts, then two more; the summary counts all; other models are refused."""
    target, draft = (tiny_models.save(tmp_path / name, seed=seed) for seed, name in enumerate(["target", "draft"]))
    (tmp_path / "p.txt").write_text("the quick\nbrown fox\njumps over\nthe lazy dog\n" + "many words " * 200)
    models = [ModelConfig(str(model), kv_gib=0.01) for model in (target, draft)]
    output = tmp_path / "t.jsonl.gz"
    for limit in (2, 5):
        config = TraceConfig(
            tmp_path / "p.txt", output, models[0], models[1], max_tokens=6, chain_length=3, limit=limit
        )
        assert run_trace(config, json_output=True) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["prompts"], summary["skipped_prompts"]) == (4, 1)
    found, records = read_trace(output)
    assert [record.prompt for record in records] == [0, 1, 2, 3]
    assert (found.pair.target, found.pair.draft) == ("target", "draft")
    assert found.pair.target_weights != found.pair.draft_weights
    swapped = TraceConfig(tmp_path / "p.txt", output, models[1], models[0], max_tokens=6, chain_length=3)
    with pytest.raises(FormatError, match="other settings"):
        run_trace(swapped, json_output=False)


@pytest.mark.parametrize("wrong", [{"rule": "other"}, {"temperature": -1.0}, {"top_p": 0.0}, {"chain_length": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    """Before anything is loaded."""
    model = ModelConfig("nothing")
    with pytest.raises(ConfigError):
        TraceConfig(Path("p"), Path("o"), model, model, **wrong)  # type: ignore[arg-type]
