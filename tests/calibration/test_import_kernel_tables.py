"""The tool that derives profiles from tables of measured kernels."""

from __future__ import annotations

import importlib.util
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wisp.calibration.shipped import load_profile

TOOL = Path(__file__).parents[2] / "tools" / "import_kernel_tables.py"
CHUNKS, CACHED, REQUESTS = (0, 16, 64), (0, 256, 1024), (0, 1, 4, 16)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("import_kernel_tables", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def attention_us(chunk: int, chunk_cached: int, num_requests: int, cached: int) -> float:
    return 8.0 + 0.01 * (chunk + chunk_cached) + 0.02 * num_requests * cached


@pytest.fixture
def folder(tool: ModuleType, tmp_path: Path) -> Path:
    """Every dense kernel takes 10 us and a tenth for each token; head and sampler a second for each sequence."""
    names = {*tool.PER_LAYER, *tool.ONCE}
    dense = [f"{name},{count},{10 + 0.1 * count}" for name in names for count in (1, 64, 512, 600, 700, 800, 900, 1024)]
    per_sequence = [f"{name},{count},{1e6 * count}" for name in tool.PER_SEQUENCE for count in range(1, 10)]
    shapes = [
        shape
        for shape in product(CHUNKS, CACHED, REQUESTS, CACHED)
        if (shape[0] or not shape[1]) and bool(shape[2]) == bool(shape[3]) and (shape[0] or shape[2])
    ]
    attention = [",".join(map(str, (*shape, attention_us(*shape)))) for shape in shapes]
    for name, header, rows in (
        ("dense", "layer,tokens,time_us", dense),
        ("per_sequence", "layer,sequences,time_us", per_sequence),
        ("attention", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", attention),
    ):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def test_a_batch_takes_the_time_of_its_kernels(tool: ModuleType, folder: Path) -> None:
    """64 layers, the norms and projections of each, one head for what gets logits, the host."""
    members = ((1, 256),) * 4
    dense = len(tool.PER_LAYER) * 10.4e-6
    layers = 64 * (dense + attention_us(0, 0, 4, 256) / 1e6)
    once = len(tool.ONCE) * 10.4e-6 + len(tool.PER_SEQUENCE) * 4.0
    host = 0.005 + 4 * 20e-6
    found = tool.Tables.read(folder).time((0, 0, 4, 256), members)
    assert found == pytest.approx(layers + once + host)


def test_all_kinds_of_batches_are_made(tool: ModuleType, folder: Path) -> None:
    """No two of them alike in attention, and the time of each is that of its kernels."""
    tables = tool.Tables.read(folder)
    samples = tables.samples(np.random.default_rng(0))
    assert len(samples) == len(tables.attention)
    kinds = {tool._kind(sample) for sample in samples}
    assert kinds == {"plain decoding", "verifications", "a chunk", "a chunk and verifications"}


def test_what_is_written_is_a_profile(tool: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its source, and a word on how well it is met."""
    tool.main(folder, folder / "profile.json")
    profile = load_profile(str(folder / "profile.json"))
    assert profile.source == tool.SOURCE
    assert "verifications" in capsys.readouterr().out
