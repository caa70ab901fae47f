"""A package of models as a hospital would install one: real metadata, real entry points, in a folder on the path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

SOURCE = '''
import torch
from torch import nn


class RiskNet(nn.Module):
    """Convolution, norm layer, integer buffer, a tied use of one parameter."""

    def __init__(self, features):
        super().__init__()
        self.mix = nn.Conv1d(1, 2, 3, padding=1)
        self.norm = nn.LayerNorm(features)
        self.out = nn.Linear(2 * features, 1)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("places", torch.arange(features))

    def forward(self, x):
        hidden = torch.tanh(self.norm(self.mix(x[:, None, self.places])))
        return self.scale * self.out(hidden.flatten(1)) + self.scale


def two_layers(features):
    return nn.Sequential(nn.Linear(features, 6, dtype=torch.float64), nn.Tanh(), nn.Linear(6, 1))


class Branching(nn.Module):
    """Looks at values: cannot be traced for many rows at once."""

    def __init__(self, features):
        super().__init__()
        self.left, self.right = nn.Linear(features, 1), nn.Linear(features, 1)

    def forward(self, x):
        return self.left(x) if float(x[0, 0]) > 0 else self.right(x)


class Mixing(nn.Module):
    """Would mix patients if it ever saw two."""

    def __init__(self, features):
        super().__init__()
        self.out = nn.Linear(features, 1)

    def forward(self, x):
        return self.out(x) + 10.0 * (x.shape[0] - 1) + x.sum() * (x.shape[0] - 1)


class Remembering(nn.Module):
    """Lets the row before decide what it says of a row."""

    def __init__(self, features):
        super().__init__()
        self.out = nn.Linear(features, 1)
        torch.nn.init.zeros_(self.out.weight)
        self.last = None

    def forward(self, x):
        before, self.last = self.last, x.detach().clone()
        return -self.out(x) if before is not None and float(before.sum()) > 0 else self.out(x)


class Dropping(nn.Module):
    """Draws at random also in evaluation mode: a patient who leaves shifts everybody's coins."""

    def __init__(self, features):
        super().__init__()
        self.out = nn.Linear(features, 1)

    def forward(self, x):
        return self.out(nn.functional.dropout(x))


def batch_norm(features):
    return nn.Sequential(nn.Linear(features, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1))


class Running(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.out = nn.Linear(features, 1)
        self.register_buffer("mean", torch.zeros(features))

    def forward(self, x):
        return self.out(x - self.mean)


def not_finite(features):
    net = nn.Linear(features, 1)
    net.weight.data[0, 0] = float("nan")
    return net


def lazy(features):
    return nn.LazyLinear(1)


def two_logits(features):
    return nn.Linear(features, 2)


def raising(features):
    raise RuntimeError("PATIENT 4711")


def no_module(features):
    return "a string"
'''
NAMES = {
    "risk-net": "RiskNet",
    "two-layers": "two_layers",
    "branching": "Branching",
    "mixing": "Mixing",
    "batch-norm": "batch_norm",
    "running": "Running",
    "remembering": "Remembering",
    "dropping": "Dropping",
    "not-finite": "not_finite",
    "lazy": "lazy",
    "two-logits": "two_logits",
    "raising": "raising",
    "no-module": "no_module",
    "missing": "NotThere",
}


def install_models(folder: Path, version: str = "1.2.0") -> None:
    """Writes the package into `folder` and puts it on the path of this process."""
    (folder / "hospital_models.py").write_text(SOURCE)
    info = folder / f"hospital_models-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Hospital_Models\nVersion: {version}\n")
    lines = [f"{name} = hospital_models:{what}" for name, what in NAMES.items()]
    (info / "entry_points.txt").write_text("[consilium.models]\n" + "\n".join(lines) + "\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
