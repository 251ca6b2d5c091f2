"""Which kernels, and which precision, can serve a model: asked when a spec is compiled, before any GPU.

What causal-conv1d and mamba-ssm take is read in the checks of their own code (1.6.2.post1 and 2.3.2.post1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalspec.models.architectures import UncoveredConfig, architecture_of
from evalspec.models.layer_cost import Layer, Mamba2Layer, MambaLayer
from evalspec.models.original_format import HYBRID
from evalspec.spec.model import ModelBlock

CONV_WIDTHS = range(2, 5)
MOST_STATE = 256


def why_not(block: ModelBlock, backend: str, config: Mapping[str, Any]) -> str | None:
    """Why a block's `kernels`, `state_dtype` or `dtype` cannot be had, naming the key; None when they can."""
    for key, value, default in (
        ("kernels", block.kernels, "auto"),
        ("state_dtype", block.state_dtype, "float32"),
    ):
        if backend != "native" and value != default:
            return f"`{key}: {value}` belongs to `backend: native`; {block.weights} runs on {backend}"
    if block.batch_invariant:
        if backend not in ("native", "transformers"):
            return f"`batch_invariant: true` needs `native` or `transformers`; {block.weights} runs on {backend}"
        if backend == "transformers" and config.get("model_type") in ("mamba", "mamba2"):
            return f"`batch_invariant: true` is `backend: native`'s for {block.weights}; transformers runs it otherwise"
        if block.kernels != "auto":
            return f"`batch_invariant: true` has kernels of its own, which `kernels: {block.kernels}` would not be"
        if block.state_dtype != "float32":
            return f"`batch_invariant: true` keeps states in float32, not in `state_dtype: {block.state_dtype}`"
        if config.get("model_type") == HYBRID:
            return f"`batch_invariant: true` is not there for hybrids with attention on native, as {block.weights} is"
    if block.dtype == "float64" and backend != "transformers":
        return f"`dtype: float64` needs `backend: transformers`; {block.weights} runs on {backend}"
    if block.kernels in ("triton", "mamba_ssm") and block.device == "cpu":
        return f"`kernels: {block.kernels}` runs on a GPU, not on `device: cpu`; say `auto`"
    if block.kernels == "mamba_ssm":
        try:
            layers = architecture_of(config).layers
        except UncoveredConfig:
            return None  # what is wrong with it is said where it is loaded
        beyond = next((found for layer in dict.fromkeys(layers) if (found := _beyond(layer))), None)
        return f"`kernels: mamba_ssm` cannot serve {block.weights}: {beyond}; say `auto`" if beyond else None
    return None


def _beyond(layer: Layer) -> str | None:
    """What of a layer the packages have no kernel for."""
    if not isinstance(layer, (MambaLayer, Mamba2Layer)):
        return None
    channels = layer.d_inner + (2 * layer.groups * layer.d_state if isinstance(layer, Mamba2Layer) else 0)
    if layer.conv_width not in CONV_WIDTHS:
        return f"causal-conv1d has filters of 2 to 4 inputs, not of {layer.conv_width}"
    if channels % 8:
        return f"causal-conv1d needs a number of channels that 8 divides, and there are {channels:,}"
    if layer.d_state > MOST_STATE:
        return f"mamba-ssm has states of at most {MOST_STATE}, not of {layer.d_state}"
    return None
