"""A small spec to try runs on: a task that generates, with and without passages, and one that chooses."""

from __future__ import annotations

from typing import Any

ASK_AND_CHOOSE: dict[str, Any] = {
    "tasks": {
        "ask": {
            "data": {"generate": "world.questions", "count": 24, "seed": 3},
            "prompt": {"template": "prompts/rag.jinja", "target": "{{ answer }}", "shots": 1},
            "retrieval": {"corpus": {"generate": "world.passages", "seed": 3}, "gold": "{{ gold_ids }}", "k": 2},
            "decode": {"max_tokens": 6, "stop": ["\n"]},
            "metrics": ["exact_match", "recall"],
        },
        "choose": {
            "data": {"generate": "world.labels", "count": 24, "seed": 3},
            "prompt": {
                "template": "prompts/labels.jinja",
                "target": "{{ label }}",
                "choices": "{{ options }}",
                "shots": 4,
            },
            "metrics": ["accuracy"],
        },
    },
    "sweep": {"tasks.ask.retrieval": [{"retriever": "none"}, {"retriever": "bm25", "k": [1, 4]}]},
}


def two_tasks(name: str, **models: dict[str, Any]) -> dict[str, Any]:
    """The spec under this name, for these models."""
    return {"name": name, "models": models, **ASK_AND_CHOOSE}
