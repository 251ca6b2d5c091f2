"""What is known of a model before its weights are loaded: that transformers cannot go on from its memory rightly.

Each was tried with random weights (transformers 5.19). The backend does not look here: it tries out each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RESTARTS = "transformers restarts its recurrence where several tokens follow a cached state"
_OWN = "transformers keeps its memory in a form of its own, which is not forked here"
_BOUNDS = "transformers bounds its time steps where several tokens are fed, and not where one is"

_REASONS = {
    "mamba": _RESTARTS,
    "falcon_mamba": _RESTARTS,
    "jamba": _RESTARTS,
    "zamba": _RESTARTS,
    "minimax": _OWN,
    "recurrent_gemma": _OWN,
    "rwkv": _OWN,
    "xlstm": _OWN,
}


def why_fed_again(config: Mapping[str, Any]) -> str | None:
    """Why the transformers backend feeds the model that a `config.json` describes from the beginning each time; None
    if nothing is known against forking it."""
    family = config.get("model_type")
    if family in ("zamba2", "nemotron_h"):
        return _BOUNDS if config.get("time_step_min", 0.001) else None
    if _bounds(config.get("time_step_limit")):
        return _BOUNDS
    return _REASONS.get(str(family))


def _bounds(limit: Any) -> bool:
    """Whether a `time_step_limit` [least, most] is one; transformers writes infinity as {"__float__": "Infinity"}."""
    if not isinstance(limit, list | tuple) or len(limit) != 2:
        return False
    least, most = limit
    most = most.get("__float__") if isinstance(most, Mapping) else most
    return least != 0 or str(most) not in ("inf", "Infinity")
