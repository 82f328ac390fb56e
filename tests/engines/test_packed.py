"""The packed engine: pools, masks, the self-check and batch-invariant arithmetic."""

from __future__ import annotations

import itertools
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines import tiny_models
from wisp.engines.packed import attention, memory, selfcheck, varlen
from wisp.engines.packed.batch import Segment, causal_mask, pack
from wisp.engines.packed.kv import KVGeometry, KVPool, KVSequence, LayerGeometry, PoolFull
from wisp.engines.packed.loading import LoadOptions, load, prepare
from wisp.engines.packed.model import PackedModel
from wisp.engines.packed.paged import PagedPool
from wisp.engines.packed.residency import Residency, common_prefix
from wisp.engines.packed.slabs import SlabPool
from wisp.errors import ConfigError, EngineError, ModelTooLarge, UnsupportedModel

GEOMETRY = KVGeometry((LayerGeometry(2, 16, 16), LayerGeometry(1, 32, 8)), torch.float32)
CPU = torch.device("cpu")


def pools() -> list[KVPool]:
    return [SlabPool(GEOMETRY, 640, 300, 4), PagedPool(GEOMETRY, 640, CPU, page_tokens=32)]


def fill(pool: KVPool, sequences: list[KVSequence], num_new: list[int], seed: int) -> None:
    """Write random keys and values of new tokens, the same for the same seed."""
    segments = [Segment(s, [0] * n, 0) for s, n in zip(sequences, num_new, strict=True)]
    for segment in segments:
        pool.reserve(segment.sequence, segment.sequence.length + len(segment.tokens))
    batch = pack(segments, CPU, torch.float32, one_row=False)
    generator = torch.Generator().manual_seed(seed)
    for layer, shape in enumerate(GEOMETRY.layers):
        key, value = (
            torch.randn((shape.num_kv_heads, sum(num_new), dim), generator=generator)
            for dim in (shape.key_dim, shape.value_dim)
        )
        pool.write(layer, key, value, batch)
    for segment in segments:
        segment.sequence.length += len(segment.tokens)


def content(pool: KVPool, sequence: KVSequence, start: int = 0) -> list[torch.Tensor]:
    """All keys and values of a sequence from a position on."""
    sequence.length -= 1
    batch = pack([Segment(sequence, [0], 0)], CPU, torch.float32, one_row=False)
    sequence.length += 1
    return [part.clone() for layer in range(2) for part in pool.read(layer, batch, 0, start)]


def test_both_pools_hold_the_same() -> None:
    """Random growth, rollback, copies and freeing leave the same keys and values in slabs and in pages."""
    rng = np.random.default_rng(0)
    both = pools()
    sequences = [[KVSequence() for _ in range(3)] for _ in both]
    for step in range(60):
        num_new = rng.integers(1, 30, 3).tolist()
        kept = rng.random(3)
        copied = int(rng.integers(0, 3)) if rng.random() < 0.2 else None
        for pool, mine in zip(both, sequences, strict=True):
            fill(pool, mine, num_new, seed=step)
            for sequence, fraction in zip(mine, kept, strict=True):
                pool.truncate(sequence, int(fraction * min(sequence.length, 150)) + 1)
            if copied is not None:
                source, target = mine[copied], mine[copied - 1]
                pool.truncate(target, 0)
                pool.copy(source, target, source.length)
        for slab, paged in zip(*sequences, strict=True):
            assert slab.length == paged.length
            start = int(rng.integers(0, slab.length))
            for a, b in zip(content(both[0], slab, start), content(both[1], paged, start), strict=True):
                assert torch.equal(a, b)
    for pool, mine in zip(both, sequences, strict=True):
        for sequence in mine:
            pool.truncate(sequence, 0)
        assert pool.used_tokens == 0


@pytest.mark.parametrize("pool", pools(), ids=["slabs", "pages"])
def test_a_pool_knows_its_capacity(pool: KVPool) -> None:
    """What does not fit is refused, and what is freed can be used again."""
    first, second, third = KVSequence(), KVSequence(), KVSequence()
    page = pool.page_tokens
    half = pool.capacity_tokens // 2 // page * page
    rest = pool.capacity_tokens - half
    pool.reserve(first, half - page + 1)
    assert pool.used_tokens == first.reserved == half
    assert pool.fits([(first, half), (second, rest)])
    assert not pool.fits([(first, half + 1), (second, rest)])
    assert not pool.fits([(second, rest - page), (third, page + 1)])
    pool.reserve(second, rest)
    with pytest.raises(PoolFull, match="full"):
        pool.reserve(third, 1)
    first.length = half
    pool.truncate(first, half - page)
    pool.reserve(third, 1)
    pool.truncate(second, 0)
    assert not second.blocks
    assert pool.used_tokens == half


def test_slabs_return_memory_to_the_system() -> None:
    """Freed slots read as zeros on Linux: their memory was given back."""
    pool = SlabPool(GEOMETRY, 1 << 20, 4096, 2)
    sequence = KVSequence()
    fill(pool, [sequence], [3000], seed=0)
    before = content(pool, sequence)
    pool.truncate(sequence, 1000)
    assert all(torch.equal(a, b[:, :1000]) for a, b in zip(content(pool, sequence), before, strict=True))
    pool.reserve(sequence, 3000)
    sequence.length = 3000
    released = [part[:, 1024:] for part in content(pool, sequence)]
    if pool._layers[0][0].memory is not None:
        assert not any(part.any() for part in released)


def test_slabs_work_without_lazy_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has none, plain tensors serve; where it refuses address space, the error says what to lower."""
    with monkeypatch.context() as patched:
        patched.setattr("wisp.engines.packed.slabs._lazy_memory", lambda num_bytes: None)
        pool = SlabPool(GEOMETRY, 4096, 64, 2)
        sequence = KVSequence()
        fill(pool, [sequence], [40], seed=0)
        pool.truncate(sequence, 0)
        assert pool.used_tokens == 0

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Cannot allocate memory")

    if sys.platform == "linux":
        monkeypatch.setattr("wisp.engines.packed.slabs.mmap.mmap", refuse)
        with pytest.raises(ModelTooLarge, match="address space"):
            SlabPool(GEOMETRY, 4096, 64, 2)


def test_slots_are_limited() -> None:
    """More sequences than slots don't fit, whatever their lengths."""
    pool = SlabPool(GEOMETRY, 1 << 20, 64, 1)
    pool.reserve(KVSequence(), 1)
    assert not pool.fits([(KVSequence(), 1)])


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_masks_hide_the_future_and_what_left_the_window(window: int | None) -> None:
    """Against the definition, for all ragged positions."""
    sequence = KVSequence(length=9)
    batch = pack(
        [Segment(KVSequence(length=3), [1] * 2, 2), Segment(sequence, [1] * 6, 1)], CPU, torch.float32, one_row=False
    )
    assert batch.positions[0].tolist() == [3, 4, 9, 10, 11, 12, 13, 14]
    assert batch.logit_rows.tolist() == [0, 1, 7]
    start = 0 if window is None else max(0, 10 - window)
    mask = causal_mask(batch, 1, window, start)
    assert mask is not None
    for row, position in enumerate(range(9, 15)):
        visible = [start + i for i, value in enumerate(mask[row].tolist()) if value == 0]
        lowest = 0 if window is None else max(0, position - window + 1)
        assert visible == list(range(lowest, position + 1))


@pytest.mark.parametrize("name", tiny_models.REFUSED)
def test_unsupported_architectures_are_refused_by_name(name: str) -> None:
    """Models that packed batches get wrong never reach a session."""
    with pytest.raises(UnsupportedModel, match=name):
        prepare(tiny_models.model(name), tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT, 1 << 22, LoadOptions())


@pytest.mark.parametrize("broken", ["scale", "window", "rotation", "layer"])
def test_the_self_check_finds_broken_attention(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong scale, a forgotten window, a wrong position and a layer that does not attend are all refused."""
    model = tiny_models.model("mistral")
    registered = attention.wisp_attention

    def wrong(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if broken == "scale":
            kwargs["scaling"] *= 1.1
        if broken == "window":
            kwargs["sliding_window"] = None
        if broken == "rotation":
            query = query.roll(1, dims=-1)
        if broken == "layer" and module.layer_idx == 1:
            return value.repeat_interleave(2, 1).transpose(1, 2), None
        return registered(module, query, key, value, mask, **kwargs)

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, wrong)
    with pytest.raises(UnsupportedModel, match=r"MistralForCausalLM \(model type mistral\) is not supported"):
        prepare(model, tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT, 1 << 22, LoadOptions())


def test_the_self_check_compares_long_windows_with_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window too long to be tried out must at least be the one that the layers ask for."""
    model = tiny_models.model("mistral")
    monkeypatch.setattr(selfcheck, "_LONGEST_WINDOW", 8)
    arguments = (tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT, 1 << 22, LoadOptions())
    prepare(model, *arguments)
    registered = attention.wisp_attention

    def wider(*tensors: Any, **kwargs: Any) -> Any:
        return registered(*tensors, **{**kwargs, "sliding_window": 25})

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, wider)
    with pytest.raises(UnsupportedModel, match="window 25, not 24"):
        prepare(tiny_models.model("mistral"), *arguments)


def test_a_failed_forward_pass_leaves_the_sequences_as_they_were() -> None:
    """Errors of torch come out as EngineError, lengths unchanged."""
    packed = tiny_models.loaded("llama").packed
    sequence = KVSequence()
    packed.forward([Segment(sequence, [3, 4, 5], 1)])
    with pytest.raises(EngineError, match="forward pass failed"):
        packed.forward([Segment(sequence, [10_000], 1)])
    assert sequence.length == 3


def decode_and_verify(packed: PackedModel, tokens: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the same tokens one by one, and several at a time beside another sequence."""
    alone, beside, other = KVSequence(), KVSequence(), KVSequence()
    one_by_one = [packed.forward([Segment(alone, [token], 1)]) for token in tokens]
    several = [
        packed.forward([Segment(other, tokens[:3], 0), Segment(beside, tokens[start : start + 5], 5)])
        for start in range(0, len(tokens), 5)
    ]
    return torch.cat(one_by_one), torch.cat(several)


def test_batch_invariant_mode_verifies_as_it_decodes() -> None:
    """In bf16 the logits of several rows are bit-identical to those of one-token decoding in that mode only."""
    tokens = tiny_models.prompt(np.random.default_rng(0), 40)
    for invariant in (True, False):
        model = tiny_models.model("mistral").to(torch.bfloat16)
        options = LoadOptions(batch_invariant=invariant)
        packed = prepare(model, tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT, 1 << 22, options)
        assert len(packed.forward([Segment(KVSequence(), tokens[:20], 0)])) == 0
        decoded, verified = decode_and_verify(packed, tokens)
        assert torch.equal(decoded, verified) == invariant
        assert torch.allclose(decoded, verified, atol=0.5)
    with pytest.raises(UnsupportedModel, match="experts"):
        tiny_models.loaded("qwen3_moe", batch_invariant=True)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "abacus"},
        {"dtype": "int3", "device": "cpu"},
        pytest.param({"device": "cuda"}, marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], tmp_path: Any) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match="use"):
        load(str(tiny_models.save(tmp_path)), LoadOptions(**options))


def test_a_wrong_layout_is_refused() -> None:
    """Slabs and pages are all there is."""
    with pytest.raises(ConfigError, match="heap"):
        tiny_models.loaded("llama", kv_layout="heap")


def test_the_expected_geometry_is_the_real_one() -> None:
    """What the memory plan reckons with is what the loaded models store."""
    for name in ("llama", "qwen3", "gemma2", "gpt2", "deepseek_v3"):
        model = tiny_models.model(name)
        expected = memory.expected_geometry(model.config, torch.float32)
        capacity = 1000 * expected.bytes_per_token
        packed = prepare(
            model, tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT, capacity, LoadOptions(kv_layout="paged")
        )
        assert packed.pool.capacity_tokens == 768
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert memory.weight_bytes(model.config, torch.float32) == 4 * parameters


def test_memory_is_shared_between_weights_and_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what the weights leave goes to the cache, up to a cap and to what all sessions could fill."""
    config = tiny_models.config("llama")
    per_token = memory.expected_geometry(config, torch.float32).bytes_per_token
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 30)

    def kv(max_sequences: int, **limits: float) -> int:
        return memory.plan(config, torch.float32, CPU, 256, max_sequences=max_sequences, **limits).kv

    assert kv(10) == 10 * 256 * per_token
    weights = memory.weight_bytes(config, torch.float32)
    assert kv(1 << 20) == ((1 << 30) - weights) // 2
    assert kv(1 << 20, kv_gib=0.25) == 1 << 28
    assert kv(1 << 20, memory_gib=64) == memory._KV_CAP_CPU
    assert kv(1 << 20, memory_gib=0.001) >= 256 * per_token


def test_free_memory_heeds_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller of what the machine has and what a container's limit leaves."""
    assert memory.available_bytes(CPU) > 0
    files = {"/sys/fs/cgroup/memory.max": "5000\n", "/sys/fs/cgroup/memory.current": "3000\n"}
    files["/sys/fs/cgroup/memory.stat"] = "anon 7\ninactive_file 500\n"
    files["/proc/meminfo"] = "MemTotal: 9 kB\nMemAvailable:    8 kB\n"
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / name.replace("/", "_"))
    for name, text in files.items():
        (tmp_path / name.replace("/", "_")).write_text(text)
    assert memory.available_bytes(CPU) == 2500
    (tmp_path / "_sys_fs_cgroup_memory.max").write_text("max\n")
    assert memory.available_bytes(CPU) == 8192
    (tmp_path / "_proc_meminfo").unlink()
    assert memory.available_bytes(CPU) > 8192


def test_contexts_are_capped_where_rotation_depends_on_the_batch(tmp_path: Any) -> None:
    """Long-context rotary embeddings that look at the longest position of a batch are kept below their switch."""
    from wisp.engines.packed.loading import _context_length

    config = tiny_models.config("llama")
    assert _context_length(config, None) == 256
    assert _context_length(config, 100) == 100
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config.rope_parameters["original_max_position_embeddings"] = 64
    assert _context_length(config, None) == 64


def test_common_prefixes() -> None:
    """Against the definition."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        a = rng.integers(0, 2, int(rng.integers(0, 12))).tolist()
        b = rng.integers(0, 2, int(rng.integers(0, 12))).tolist()
        limit = int(rng.integers(0, 12))
        expected = 0
        while expected < min(limit, len(a), len(b)) and a[expected] == b[expected]:
            expected += 1
        assert common_prefix(a, b, limit) == expected


def test_a_long_closed_conversation_survives_a_short_common_beginning() -> None:
    """A new session copies a short common prefix instead of taking a long cache over."""
    pool = pools()[0]
    residency = Residency(pool)
    long = residency.open("long", "me", list(range(200)))
    fill(pool, [long.sequence], [200], seed=0)
    residency.close("long")
    short = residency.open("short", "me", [*range(40), 7, 7, 7])
    assert short.num_cached == 40
    again = residency.open("again", "me", list(range(200)))
    assert again.num_cached == 199
    assert again.sequence is long.sequence


def test_the_batch_kernel_needs_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    """On a CPU, in float32 and with unequal head dimensions it is not even tried."""
    assert not varlen.usable(GEOMETRY, CPU)
    assert not varlen.usable(GEOMETRY, torch.device("cuda"))
    half = KVGeometry((LayerGeometry(2, 24, 16),), torch.float16)
    assert not varlen.usable(half, torch.device("cuda"))
    with pytest.raises(ValueError, match="256"):
        varlen.paged_attention(PagedPool(GEOMETRY, 640, CPU, page_tokens=32))


@pytest.mark.parametrize("fault", ["raises", "differs", None])
def test_a_batch_kernel_that_disagrees_is_not_used(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The start-up check against the plain logits decides, and says so."""

    def kernel(pool: PagedPool) -> Any:
        def attend(query: Any, layer: int, batch: Any, scale: float, window: int | None) -> torch.Tensor:
            if fault == "raises":
                raise RuntimeError("no kernel image")
            rows = []
            for index, span in enumerate(batch.spans):
                keys, values = pool.read(layer, batch, index, 0)
                mask = causal_mask(batch, index, window if fault is None else None, 0, repeats=2)
                rows.append(
                    attention._attend(query[0, :, span.start : span.end], keys, values, mask, scale, None, None)
                )
            return torch.cat(rows)[None]

        return attend

    monkeypatch.setattr(varlen, "usable", lambda geometry, device: True)
    monkeypatch.setattr(varlen, "paged_attention", kernel)
    with caplog.at_level(logging.WARNING):
        packed = tiny_models.loaded("mistral", kv_layout="paged").packed
    assert (packed.batch_attention is None) == (fault is not None)
    assert ("attending per sequence instead" in caplog.text.replace("\n", " ")) == (fault is not None)


def documented_varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    num_splits: int,
) -> torch.Tensor:
    """What torch documents of `varlen_attn` with pages, queries aligned with the last keys."""
    assert (cu_seq_k, enable_gqa, num_splits, window_size[1]) == (None, True, 1, 0)
    assert {cu_seq_q.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
    assert query.is_contiguous()
    offsets, lengths = cu_seq_q.tolist(), seqused_k.tolist()
    assert max_q == max(b - a for a, b in itertools.pairwise(offsets))
    assert max_k == max(lengths)
    outputs = []
    for (start, end), length, table in zip(itertools.pairwise(offsets), lengths, block_table, strict=True):
        groups = query.shape[1] // key.shape[2]
        keys, values = (
            pages[table.long()].flatten(0, 1)[:length].repeat_interleave(groups, 1).transpose(0, 1)
            for pages in (key, value)
        )
        distance = torch.arange(length - (end - start), length)[:, None] - torch.arange(length)
        visible = (distance >= 0) & ((distance <= window_size[0]) | (window_size[0] < 0))
        scores = query[start:end].transpose(0, 1) @ keys.transpose(1, 2) * scale
        outputs.append((scores.masked_fill(~visible, -torch.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("name", ["llama", "mistral", "cohere2", "gemma2", "gpt_oss"])
def test_the_batch_kernel_is_called_as_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that follows torch's documentation, the start-up check passes (soft caps and sinks go past it)."""
    module = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "usable", lambda geometry, device: True)
    monkeypatch.setattr(module, "varlen_attn", documented_varlen_attn)
    packed = tiny_models.loaded(name, kv_layout="paged").packed
    assert packed.batch_attention is not None
    again = selfcheck.reference(tiny_models.model(name), tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT)
    assert selfcheck.relative_error(packed, again) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_paged_flash_attention_agrees_on_a_gpu(name: str) -> None:
    """On CUDA in bf16 the batch kernel is selected, which means that it passed its check."""
    model = tiny_models.model(name).to("cuda", torch.bfloat16)
    packed = prepare(model, tiny_models.VOCABULARY_SIZE, tiny_models.CONTEXT, 1 << 24, LoadOptions(device="cuda"))
    assert packed.batch_attention is not None
