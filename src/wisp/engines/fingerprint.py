"""The fingerprint of a model's weights, by which a file knows the pair of models that it was made with."""

from __future__ import annotations

import hashlib

import torch

_SAMPLED = 64
"""Values looked at per tensor: enough to tell two trainings apart, cheap for models of any size."""


def weights_fingerprint(model: torch.nn.Module) -> str:
    """SHA-256, in hex, of the names, shapes and first values of a model's weights.

    Values are rounded to bfloat16, so that a checkpoint has one fingerprint in whichever type it is loaded.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().reshape(-1)[:_SAMPLED].to(torch.bfloat16).float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
