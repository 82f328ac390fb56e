"""Stop rules by name: per device and per request, always with the target's own text."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from tests.edge.endpoint import edge_config, everything, expected_text, server_config
from tests.fakes import FakeDrafter, FakeTarget, fingerprint
from tests.policy.test_predictor import predictor
from wisp.config import STOP_RULES, EdgeConfig
from wisp.edge.app import serving
from wisp.errors import ConfigError, FormatError
from wisp.formats.predictor import TrainedPredictor
from wisp.formats.trace import PairIdentity
from wisp.server.app import start_server

PAIR = PairIdentity("fake-target", "?", "fake-drafter", "fake-weights", fingerprint())
PROMPT = "once upon a time"


def saved_predictor(folder: Path, pair: PairIdentity = PAIR) -> Path:
    """It believes margins above 2: FakeDrafter's are 3.6 where it is right, else 1.6."""
    path = folder / "predictor.json"
    TrainedPredictor(pair, ("greedy",), predictor(4.0, -2.0), threshold=0.5).save(path)
    return path


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("name", STOP_RULES)
async def test_no_rule_changes_the_text(tmp_path: Path, name: str, temperature: float) -> None:
    """Chosen for the device, and asked for by a request of a device that drafts a fixed length."""
    path = saved_predictor(tmp_path)
    for of_device, of_request in ((name, {}), ("fixed", {"stop_rule": name})):
        async with everything(tmp_path, stop_rule=of_device, predictor=path, max_draft_tokens=8) as setup:
            answer = await setup.client.completions.create(
                model="wisp",
                prompt=PROMPT,
                max_tokens=40,
                temperature=temperature,
                seed=7,
                extra_body={"wisp": of_request},
            )
        assert answer.choices[0].text == expected_text(PROMPT, 40, temperature=temperature, seed=7)


async def test_thresholds_come_with_the_request(tmp_path: Path) -> None:
    """At threshold 1 every draft ends after one token; at 0 none does."""
    rejected = {}
    async with everything(tmp_path, max_draft_tokens=8) as setup:
        for threshold in (0.0, 0.5, 1.0):
            answer = await setup.client.completions.create(
                model="wisp",
                prompt=PROMPT,
                max_tokens=60,
                temperature=0,
                extra_body={"wisp": {"stop_rule": "confidence", "stop_threshold": threshold}},
            )
            details = answer.usage.completion_tokens_details if answer.usage else None
            assert details is not None
            rejected[threshold] = details.rejected_prediction_tokens or 0
    assert rejected[0.5] < rejected[0.0]
    assert rejected[1.0] < rejected[0.0]


@pytest.mark.parametrize("name", ["predicted", "clairvoyant"])
async def test_a_rule_that_the_device_does_not_offer(tmp_path: Path, name: str) -> None:
    """Predictions need a predictor; the answer lists what there is."""
    async with everything(tmp_path) as setup:
        with pytest.raises(openai.BadRequestError, match="this device offers fixed, confidence, entropy, price"):
            await setup.client.completions.create(
                model="wisp", prompt=PROMPT, max_tokens=4, extra_body={"wisp": {"stop_rule": name}}
            )


@pytest.mark.parametrize(
    ("field", "what"), [("vocabulary", "vocabulary"), ("target", "target"), ("draft_weights", "weights")]
)
async def test_a_predictor_of_another_pair(tmp_path: Path, field: str, what: str) -> None:
    """The device does not start with it, and the message says which model differs."""
    path = saved_predictor(tmp_path, replace(PAIR, **{field: "other"}))
    server = await start_server(FakeTarget(), server_config())
    with pytest.raises(FormatError, match=f"the {what}.* should be other"):
        async with serving(
            edge_config(server.address, predictor=path, stop_rule="predicted"), lambda _: FakeDrafter(), tmp_path
        ):
            pytest.fail("the device started")
    await server.stop(0.0)


@pytest.mark.parametrize(("weights", "fits"), [("?", True), ("others", False)])
async def test_a_target_that_says_its_weights_is_known_by_them(tmp_path: Path, weights: str, fits: bool) -> None:
    """Under whatever name it is served."""
    path = saved_predictor(tmp_path, replace(PAIR, target="of another name"))
    target = FakeTarget()
    target.card = replace(target.card, weights=weights)
    server = await start_server(target, server_config())
    expected = (
        nullcontext() if fits else pytest.raises(FormatError, match=r"weights of the target should be \?, not others")
    )
    with expected:
        async with serving(
            edge_config(server.address, predictor=path, stop_rule="predicted"), lambda _: FakeDrafter(), tmp_path
        ):
            pass
    await server.stop(0.0)


@pytest.mark.parametrize(("name", "complaint"), [("predicted", "needs a predictor"), ("other", "stop_rule must be")])
def test_a_device_that_cannot_work_is_not_configured(name: str, complaint: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match=complaint):
        EdgeConfig("127.0.0.1:1", stop_rule=name)
