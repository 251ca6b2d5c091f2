"""The JSON Schema of a spec file, for editors: completion, descriptions, and red underlines for unknown keys.

It is laxer than `evalspec validate` on purpose. A key may come from `include:` or `extends:`, so that none is required;
what a schema cannot say (a metric that fits its task, a template that exists) is left out rather than said wrongly.

`python -m evalspec.spec.schema` writes docs/evalspec.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from evalspec.spec.blocks import Spec
from evalspec.spec.needs import GENERATORS, METRICS, PLUGINS, RETRIEVERS, STEPS, ZOO

COMMITTED = Path(__file__).parents[2] / "docs" / "evalspec.schema.json"

Json = dict[str, Any]


def schema(*, plugins: bool = True) -> Json:
    """The JSON Schema (2020-12) of a spec. With `plugins`, names that this environment's plugins add are known too."""
    made = Spec.model_json_schema(mode="validation")
    _tidy(made)
    blocks: Json = made["$defs"]
    for name, block in blocks.items():
        if name != "MetricBlock":
            block.pop("required", None)
    made.pop("required", None)
    _names(made)
    task, prompt = blocks["TaskBlock"]["properties"], blocks["PromptBlock"]["properties"]
    prompt["shots"]["anyOf"].insert(0, {"type": "integer", "minimum": 0, "description": "How many."})
    steps = {"items": {"anyOf": [*_choices(STEPS, "step", plugins), {"$ref": "#/$defs/StepBlock"}]}}
    for asked in (task, blocks["StageBlock"]["properties"]):
        asked["metrics"]["items"] = {"anyOf": [*_metric_names(plugins), {"$ref": "#/$defs/MetricBlock"}]}
        chains = asked["filters"]["patternProperties"]
        asked["filters"]["patternProperties"] = {name: {**chain, **steps} for name, chain in chains.items()}
    prompt["steps"]["anyOf"].insert(0, {"type": "string", "description": "Template of the right steps."})
    blocks["MetricBlock"]["properties"]["metric"]["anyOf"] = _choices(_metrics(), "metric", plugins)
    blocks["StepBlock"]["properties"]["step"]["anyOf"] = [*_choices(STEPS, "step", plugins), {"type": "null"}]
    retrieval = blocks["RetrievalBlock"]["properties"]
    retrieval["retriever"]["anyOf"] = _choices(RETRIEVERS, "retriever", plugins)
    fusable = {name: says for name, says in RETRIEVERS.items() if name in ("bm25", "dense")}
    retrieval["of"]["items"]["anyOf"] = _choices(fusable, "retriever", plugins)
    generate = blocks["DataBlock"]["properties"]["generate"]
    generate["anyOf"] = [*_choices(GENERATORS, "generator", plugins), {"type": "null"}]
    weights = blocks["ModelBlock"]["properties"]["weights"]
    weights["examples"] = [*(f"zoo/{name}" for name in ZOO), "state-spaces/mamba-2.8b-hf", "./checkpoints/mine"]
    made["properties"]["sweep"] = _sweep(made["properties"]["sweep"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "evalspec",
        **made,
    }


def schema_text(*, plugins: bool = True) -> str:
    """`schema` as JSON text, ending in a newline."""
    return json.dumps(schema(plugins=plugins), indent=1, ensure_ascii=False) + "\n"


def _tidy(node: Any) -> None:
    """Drop pydantic's titles, which only repeat the keys, and unfold descriptions."""
    if isinstance(node, list):
        for item in node:
            _tidy(item)
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        if isinstance(node.get("description"), str):
            node["description"] = " ".join(node["description"].split())
        for child in node.values():
            _tidy(child)


def _names(made: Json) -> None:
    """Models and tasks have names of the user's; those that start with `_` only serve to be extended."""
    for section, block in (("models", "ModelBlock"), ("tasks", "TaskBlock")):
        named = made["properties"][section]
        named.pop("minProperties", None)  # an included file may bring them
        entry = {"anyOf": [{"$ref": f"#/$defs/{block}"}, {"type": "null"}]}  # null takes an included one away
        named["patternProperties"] = dict.fromkeys((*named["patternProperties"], "^_"), entry)
        named["additionalProperties"] = False


def _metrics() -> dict[str, str]:
    return {name: declared.says for name, declared in METRICS.items()}


def _choices(known: Mapping[str, str], kind: str, plugins: bool) -> list[Json]:
    """One alternative a name, each with what it does."""
    choices: list[Json] = [{"const": name, "description": says} for name, says in known.items()]
    if plugins:
        choices += [{"const": name, "description": "a plugin's"} for name in plugin_names(kind)]
    return choices


def plugin_names(kind: str) -> list[str]:
    """Names of this kind that plugins in this environment declare."""
    return sorted({point.name for point in entry_points(group=PLUGINS[kind])})


def _metric_names(plugins: bool) -> list[Json]:
    cut = "|".join([name for name, declared in METRICS.items() if declared.at_k])
    mine = plugin_names("metric") if plugins else []
    ranked = {
        "type": "string",
        "pattern": f"^({'|'.join([cut, *mine])})@[1-9][0-9]*$",
        "description": "Cut at this rank, or this position.",
    }
    return [*_choices(_metrics(), "metric", plugins), ranked]


def _sweep(made: Json) -> Json:
    values: Json = {
        "anyOf": [
            {"type": "array", "minItems": 1, "description": "Values, or conditions merged into the block."},
            {
                "type": "object",
                "description": "One condition; its lists are a product, [[…]] stays a list.",
            },
        ]
    }
    paths = {"type": "object", "additionalProperties": {"type": "array"}, "minProperties": 1}
    zipped = {"anyOf": [paths, {"type": "array", "items": paths}], "description": "Paths that advance together."}
    return {
        "description": made["description"],
        "type": ["object", "null"],
        "properties": {"zip": zipped},
        "patternProperties": {r"^(models|tasks)\..+$": values},
        "additionalProperties": False,
    }


if __name__ == "__main__":
    COMMITTED.write_text(schema_text(plugins=False), encoding="utf-8")
