"""A state-space model on a CPU by transformers, where a package of GPU kernels is installed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib.machinery, sys, types

import torch

from evalspec.doctor.score_parity import plain_scores, requests_of, scores, shipped

asked = requests_of(1)
if sys.argv[1] == "with":
    def fails(*_, **__):
        raise RuntimeError("Expected x.is_cuda() to be true, but got false.")

    package = types.ModuleType("causal_conv1d")
    package.__spec__ = importlib.machinery.ModuleSpec("causal_conv1d", None)
    package.causal_conv1d_fn = package.causal_conv1d_update = fails
    sys.modules["causal_conv1d"] = package
print(list(plain_scores("mamba", asked)))
print(list(scores(shipped("mamba", torch.device("cpu"), backend="transformers"), asked)))
"""


def run(packages: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, packages], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_package_of_gpu_kernels_changes_nothing_for_a_model_on_a_cpu() -> None:
    """transformers takes causal-conv1d wherever it is installed; it fails on a CPU."""
    assert run("with") == run("without")
