"""The kernels as something to try: inputs at a model's widths, what bytes and operations they take, how to call each.

Bytes are those that a kernel must move at least: what it is given and what it gives, each once. Operations are counted
as in `models/layer_cost.py`: a multiplication or an addition is one, an exponential too. Both are what a share of a
device's copy rate and GEMM rate is taken of, here and in `benchmarks/kernels.py`.

Glossary: t tokens · e channels · n state · K width of the filter · h heads · p head size · b rows of one token
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.choice import Kernels

SSD_CHUNK = 64  # tokens; within a chunk every pair of tokens meets

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Widths:
    """Sizes of the layers that the kernels are tried at."""

    name: str
    channels: int
    state: int
    conv: int
    heads: int
    head: int
    dual_state: int
    attention_heads: int
    attention_head: int


LARGE = Widths("Mamba-2.8b, Mamba2-2.7b and Pythia-2.8b", 5120, 16, 4, 80, 64, 128, 32, 80)
ZOO = Widths("the models of the zoo", 384, 16, 4, 6, 64, 64, 3, 64)


@dataclass(frozen=True, eq=False)
class Case:
    """One kernel on one set of inputs.

    run         (kernels, inputs, **options) → what it computed; a `state` among the inputs may be updated in place
    moved       bytes at least
    operations  multiplications, additions, exponentials
    products    precision of its arithmetic: the GEMM rate of this dtype is its upper bound
    """

    name: str
    on: str
    inputs: dict[str, Any]
    run: Callable[..., Outputs]
    moved: int
    operations: float
    products: torch.dtype
    loose: float
    """Largest error allowed, of the largest value."""
    tunable: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def fresh(self) -> dict[str, Any]:
        """The inputs with a state of their own."""
        return {
            name: value.clone() if name == "state" and value is not None else value
            for name, value in self.inputs.items()
        }


def tolerance(dtype: torch.dtype) -> float:
    """Largest error of a kernel on inputs of this type, of the largest value: what the tests allow."""
    return 1e-5 if dtype == torch.float32 else 1e-2


class Draw:
    """Random inputs on a device, the same in every process."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers."""
        drawn = torch.randn(*shape, device=self.device, generator=self._generator, dtype=torch.float32)
        return drawn.to(dtype or self.dtype)

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Uniform float32 numbers."""
        return torch.rand(*shape, device=self.device, generator=self._generator) * (high - low) + low


def size(*tensors: Tensor | None) -> int:
    """Their bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def question_forest(trunk: int, questions: int, given: int = 1) -> Pack:
    """What a choice task comes to: a long prefix, questions behind it, four choices behind each; nothing is kept."""
    random = np.random.default_rng(0)
    length, parent = [trunk], [-1]
    for _ in range(questions):
        question = len(length)
        length += [int(random.integers(20, 60)), *random.integers(1, 9, 4).tolist()]
        parent += [0, *[question] * 4]
    return Pack.of(length, parent, given, [])


def small_forest() -> Pack:
    """Three given states and branches behind them, of lengths that fill no block; most last states are kept."""
    length = [131, 3, 17, 1, 70, 2, 33, 5, 64, 9]
    parent = [-1, 0, 1, 1, 0, -2, 5, 5, -3, 8]
    return Pack.of(length, parent, 3, [0, 2, 3, 6, 9])


def conv_case(pack: Pack, on: str, widths: Widths, draw: Draw, *, started: bool = True) -> Case:
    """The causal convolution with its silu; x is a slice of a projection, as in the layer.

    Here and below, `started` gives it states to start from; otherwise it starts from nothing.
    """
    e, width = widths.channels, widths.conv
    x = draw(pack.tokens, 2 * e)[:, :e]
    state = draw(pack.given, width - 1, e) if started else None
    inputs = {"x": x, "weight": draw(e, width), "bias": draw(e), "state": state}

    def run(kernels: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return kernels.convolve(**given, pack=pack, silu=True, **options)

    kept = len(pack.keep) * (width - 1) * e * x.element_size()
    moved = size(x, x, state) + kept
    operations = pack.tokens * e * (2.0 * width + 4)
    tunable = {"tokens": [8, 16, 32, 64], "block": [64, 128, 256], "warps": [2, 4, 8]}
    return Case("convolution", on, inputs, run, moved, operations, torch.float32, tolerance(x.dtype), tunable)


def scan_case(pack: Pack, on: str, widths: Widths, draw: Draw, *, started: bool = True, wide: bool = False) -> Case:
    """The selective scan with its softplus and its gate; B and C are slices of a projection (`wide`: in float32)."""
    t, e, n = pack.tokens, widths.channels, widths.state
    B, C = torch.split(draw(t, 160 + 2 * n, dtype=torch.float32 if wide else None)[:, 160:], n, dim=1)
    A = -torch.arange(1, n + 1, device=draw.device, dtype=torch.float32).repeat(e, 1)
    inputs = {
        "x": draw(t, e),
        "delta": draw(t, e),
        "A": A.T.contiguous().T,  # as it is kept by whoever calls the kernel often
        "B": B,
        "C": C,
        "D": draw(e, dtype=torch.float32),
        "z": draw(t, e),
        "delta_bias": torch.full((e,), -4.0, device=draw.device),
        "state": draw(pack.given, e, n, dtype=torch.float32) if started else None,
    }

    def run(kernels: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return kernels.scan(**given, pack=pack, **options)

    moved = size(*(inputs[name] for name in ("x", "x", "delta", "z", "B", "C", "state"))) + len(pack.ends) * e * n * 4
    operations = t * float(9 * e * n + 6 * e)
    tunable = {"steps": [1, 2, 4, 8], "warps": [1, 2, 4]}
    return Case(
        "selective scan", on, inputs, run, moved, operations, torch.float32, tolerance(draw.dtype), tunable
    )  # fmt: skip


def ssd_case(pack: Pack, on: str, widths: Widths, draw: Draw, *, started: bool = True) -> Case:
    """SSD, the scan of Mamba-2."""
    t, h, p, n = pack.tokens, widths.heads, widths.head, widths.dual_state
    inputs = {
        "x": draw(t, h, p),
        "delta": F.softplus(draw(t, h, dtype=torch.float32) - 4),
        "A": draw.uniform(h, low=-16.0, high=-1.0),
        "B": draw(t, 1, n),
        "C": draw(t, 1, n),
        "D": draw(h, dtype=torch.float32),
        "state": draw(pack.given, h, p, n, dtype=torch.float32) if started else None,
    }

    def run(kernels: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return kernels.ssd(**given, pack=pack, **options)

    moved = size(*(inputs[name] for name in ("x", "x", "delta", "B", "C", "state"))) + len(pack.ends) * h * p * n * 4
    inner, chunk = h * p, min(SSD_CHUNK, t)
    operations = t * (2.0 * chunk * (n + inner) + 4 * inner * n + 2 * inner * n / chunk)
    tunable = {
        "chunk": [64, 128, 256], "tile": [64, 128],
        "warps": [4, 8], "output_warps": [4, 8], "stages": [1, 2, 3],
    }  # fmt: skip
    return Case("SSD", on, inputs, run, moved, operations, draw.dtype, tolerance(draw.dtype), tunable)


def step_cases(rows: int, widths: Widths, draw: Draw) -> Iterator[Case]:
    """One token of each row: convolution, scan and SSD, each with its state updated where it is."""
    e, n, on = widths.channels, widths.state, f"{rows} rows"
    x, loose = draw(rows, e), tolerance(draw.dtype)
    conv = {
        "x": x,
        "weight": draw(e, widths.conv),
        "bias": draw(e),
        "state": draw(rows, widths.conv - 1, e),
    }

    def step_conv(kernels: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return kernels.convolve_step(**given, silu=True, **options), given["state"]

    yield Case(
        "convolution, a step", on, conv, step_conv, 2 * size(x, conv["state"]), rows * e * (2.0 * widths.conv + 4),
        torch.float32, loose, {"block": [128, 256, 512, 1024], "warps": [1, 2, 4, 8]},
    )  # fmt: skip
    scan = {
        "x": x,
        "delta": draw(rows, e),
        "A": draw.uniform(e, n, low=-1.0, high=0.0),
        "B": draw(rows, n),
        "C": draw(rows, n),
        "D": draw(e, dtype=torch.float32),
        "z": draw(rows, e),
        "delta_bias": draw(e),
        "state": draw(rows, e, n, dtype=torch.float32),
    }

    def step_scan(kernels: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return kernels.scan_step(**given, **options), given["state"]

    yield Case(
        "selective scan, a step", on, scan, step_scan, size(x, x, scan["z"], scan["delta"]) + 2 * size(scan["state"]),
        rows * float(9 * e * n + 6 * e), torch.float32, loose, {"block": [16, 32, 64, 128], "warps": [1, 2, 4]},
    )  # fmt: skip
    h, p, n_2 = widths.heads, widths.head, widths.dual_state
    dual = {
        "x": torch.unflatten(x[:, : h * p], 1, (h, p)),
        "delta": draw(rows, h, dtype=torch.float32).sigmoid(),
        "A": draw.uniform(h, low=-1.0, high=0.0),
        "B": draw(rows, 1, n_2),
        "C": draw(rows, 1, n_2),
        "D": draw(h, dtype=torch.float32),
        "state": draw(rows, h, p, n_2, dtype=torch.float32),
    }

    def step_ssd(kernels: Kernels, given: dict[str, Any], **options: Any) -> Outputs:
        return kernels.ssd_step(**given, **options), given["state"]

    yield Case(
        "SSD, a step", on, dual, step_ssd, 2 * size(dual["x"], dual["state"]), rows * 6.0 * h * p * n_2,
        torch.float32, loose, {"block": [8, 16, 32, 64], "warps": [2, 4, 8]},
    )  # fmt: skip
