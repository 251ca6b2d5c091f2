"""Models with state-space layers on a CPU, by transformers, where mamba-ssm or causal-conv1d is installed.

transformers (5.17, 5.19) takes those packages' kernels when it is imported, wherever a model then is, and they fail on
a CPU. Here it takes its own functions there, which it keeps behind them.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def kernels_by_device(model: nn.Module) -> None:
    """Let the functions that a model's layers call choose their kernels by where their arguments are."""
    for module in {sys.modules[type(part).__module__] for part in model.modules()}:
        for name, function in list(vars(module).items()):
            if inspect.isfunction(function) and function.__code__.co_filename.endswith("hub_kernels.py"):
                setattr(module, name, _by_device(function))


def _by_device(function: Callable[..., Any]) -> Callable[..., Any]:
    plain: Callable[..., Any] = inspect.unwrap(function)
    known = inspect.signature(plain).parameters

    @functools.wraps(plain)
    def chosen(*args: Any, **named: Any) -> Any:
        if any(isinstance(value, Tensor) and value.is_cuda for value in (*args, *named.values())):
            return function(*args, **named)
        return plain(*args, **{name: value for name, value in named.items() if name in known})

    return chosen
