"""The fakes keep the contracts of the interfaces they stand for."""

from tokenizers import Tokenizer

from tests.fakes import EOS, FakeDrafter, FakeTarget, generate, tokenizer_json
from wisp.engines.base import DraftEngine, StepMember, TargetEngine
from wisp.types import FinishReason, GenerationRequest, SamplingParams, StopRules


def test_speculative_rounds_give_the_output_of_plain_decoding() -> None:
    """Draft, verify, commit: the same tokens as one by one."""
    target: TargetEngine = FakeTarget(eos_one_in=40)
    drafter: DraftEngine = FakeDrafter(accuracy=0.6, eos_one_in=40)
    for seed in range(20):
        request = GenerationRequest(
            tuple(b"hello"), 5, SamplingParams(temperature=1.0, seed=seed), StopRules(50, frozenset({EOS}))
        )
        target.open("s", "me", request)
        drafter.open("s", request)
        reason: FinishReason | None = None
        while reason is None:
            draft = tuple(token for token in (drafter.draft(["s"])[0] for _ in range(4)) if token is not None)
            missing = len(target.history("s")) - 1 - target.num_cached_tokens("s")
            (outcome,) = target.step([StepMember("s", missing, draft)])
            drafter.commit("s", outcome.num_accepted, [] if outcome.next_token is None else [outcome.next_token])
            reason = outcome.finish_reason
        assert list(target.history("s"))[5:] == generate(request, eos_one_in=40)


def test_the_tokenizer_decodes_what_the_target_emits() -> None:
    """Emitted tokens are printable text."""
    tokenizer = Tokenizer.from_str(tokenizer_json().decode())
    request = GenerationRequest(tuple(tokenizer.encode("Hello").ids), 5, SamplingParams(), StopRules(20))
    assert tokenizer.decode(generate(request)).isprintable()
