"""The fingerprint of a model's weights, by which a file knows the pair of models that it was made with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_SAMPLED = 64
"""Values looked at per tensor: enough to tell two trainings apart, cheap for models of any size."""


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256, in hex, of the names, shapes and first values of a model's weights.

    Values are rounded to bfloat16, so that a checkpoint has one fingerprint in whichever type it is loaded.
    """
    state = model.state_dict()
    return _digest((name, tuple(tensor.shape), tensor.detach()) for name, tensor in sorted(state.items()))


def checkpoint_fingerprint(model: str) -> str:
    """The fingerprint of a checkpoint that another engine loads, read from its files; empty: they do not tell.

    `model` is a folder or a hub name. Only the first rows of each tensor are read. Checkpoints whose tensors are named
    or stored in another way than transformers has them in memory (quantised, fused) have no fingerprint.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        empty = factory.from_config(AutoConfig.from_pretrained(model))
    stored = _tensors(model)
    embedding = next((n for n, module in empty.named_modules() if module is empty.get_input_embeddings()), "")
    heads = []
    for name, tensor in sorted(empty.state_dict().items()):
        tied = empty.config.get_text_config().tie_word_embeddings and name not in stored
        found = stored.get(f"{embedding}.weight" if tied else name)
        if found is None or list(found.get_shape()) != list(tensor.shape):
            return ""
        heads.append((name, tuple(tensor.shape), _head(found)))
    return _digest(heads)


def _tensors(model: str) -> dict[str, Any]:
    """The slices that a checkpoint's safetensors files hold, by name; empty where it has other files."""
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    folder = Path(model)
    index = cached_file(model, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    names = sorted(set(json.loads(Path(index).read_text())["weight_map"].values())) if index else ["model.safetensors"]
    paths = [folder / name if folder.is_dir() else Path(str(cached_file(model, name))) for name in names]
    found: dict[str, Any] = {}
    for path in paths:
        if path.is_file():
            file: Any = safe_open(path, framework="pt")
            names_here: list[str] = file.keys()
            found |= {name: file.get_slice(name) for name in names_here}
    return found


def _head(found: Any) -> torch.Tensor:
    """The first values of a tensor in a file."""
    width = math.prod(found.get_shape()[1:])
    head: torch.Tensor = found[: -(-_SAMPLED // max(width, 1))]
    return head


def _digest(tensors: Iterable[tuple[str, tuple[int, ...], torch.Tensor]]) -> str:
    """Of names, shapes, and tensors that begin with the sampled values."""
    digest = hashlib.sha256()
    for name, shape, tensor in tensors:
        values = tensor.reshape(-1)[:_SAMPLED].to(torch.bfloat16).float().cpu()
        digest.update(f"{name} {shape} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
