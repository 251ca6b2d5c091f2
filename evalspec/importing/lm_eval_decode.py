"""`generation_kwargs`, `repeats` and `filter_list` as `decode:` and `filters:` of a spec.

Defaults are those of the harness's `hf` backend: greedy, 256 new tokens, and where nothing else is said answers end at
the text that stands between shots.
"""

from __future__ import annotations

import re
from typing import Any

from evalspec.importing.lm_eval_findings import Findings

MAX_TOKENS = 256
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in the order in which they count
SAMPLED_TOP_K = 50  # what transformers samples from where nothing is said
REGEX = r"#### (\-?[0-9\.\,]+)"  # the pattern of a `regex` filter that names none

IGNORED = {"regexes_to_ignore": "ignore", "ignore_case": "ignore_case", "ignore_punctuation": "ignore_punctuation"}
"""What counts for nothing in `multi_choice_regex`, and how a step `option` says it."""

Block = dict[str, Any]


def decode_block(findings: Findings, separator: str) -> Block:
    """How answers are generated."""
    given = findings.typed("generation_kwargs", dict, {}, "a mapping")
    kwargs = {key: value for key, value in given.items() if value is not None}
    until = kwargs.pop("until", None if "until" in given else [separator])
    stops = [until] if isinstance(until, str) else until or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        findings.refuse("generation_kwargs", f"`until` must be a list of texts, not {until!r}")
        stops = []
    lengths = [kwargs.pop(name) for name in LENGTHS if name in kwargs]
    length = _whole(findings, "generation_kwargs", "max_gen_toks", lengths[0] if lengths else MAX_TOKENS)
    temperature = _number(findings, "temperature", kwargs.pop("temperature", 0.0))
    sample = kwargs.pop("do_sample", temperature > 0)
    if not isinstance(sample, bool):
        findings.refuse("generation_kwargs", f"`do_sample` must be true or false, not {sample!r}")
    if sample is True and temperature == 0:
        findings.refuse("generation_kwargs", "`do_sample: true` needs a `temperature` above 0")
    block: Block = {"max_tokens": length, "stop": list(dict.fromkeys(stop for stop in stops if stop))}
    if not sample or temperature == 0:
        for name in ("top_p", "top_k"):
            kwargs.pop(name, None)
    else:
        block["temperature"] = float(temperature)
        if "top_p" in kwargs:
            block["top_p"] = float(_number(findings, "top_p", kwargs.pop("top_p")))
        block["top_k"] = _whole(findings, "generation_kwargs", "top_k", kwargs.pop("top_k", SAMPLED_TOP_K), 0)
        findings.note("answers are sampled by evalspec's own seeds: other answers than the harness's, of the same kind")
    if kwargs.get("num_beams") == 1:
        del kwargs["num_beams"]
    for name in kwargs:
        findings.refuse("generation_kwargs", f"`{name}` has no counterpart in `decode`")
    repeats = _whole(findings, "repeats", "repeats", findings.get("repeats", 1))
    if repeats > 1 and "temperature" in block:
        block["repeats"] = repeats
    elif repeats > 1:
        findings.note(f"`repeats: {repeats}` of greedy answers are the same answer each time: asked once")
    return block


def filter_chains(findings: Findings, repeats: int) -> dict[str, list[Any]]:
    """The chains of `filter_list`; without one the output as it is, of the first repeat."""
    listed = findings.get("filter_list")
    if listed is None:
        return {"none": _first(repeats)}
    chains: dict[str, list[Any]] = {}
    for item in listed if isinstance(listed, list) else [listed]:
        named = isinstance(item, dict) and isinstance(item.get("name"), str)
        if not named or not isinstance(item.get("filter"), list):
            findings.refuse("filter_list", f"a filter has a `name` and a list `filter`, not {item!r}")
            continue
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", item["name"])
        name = name if name[:1].isalpha() else f"filter-{name}"
        if name in chains:
            findings.refuse("filter_list", f"two filters are called `{name}`; give each a name of its own")
        if name != item["name"]:
            findings.note(f"the filter `{item['name']}` is called `{name}` here")
        chains[name] = _chain(findings, item["name"], item["filter"], repeats)
    return chains


def only_takes_first(findings: Findings) -> bool:
    """Whether `filter_list` changes nothing, which is all it may do where nothing is generated."""
    listed = findings.get("filter_list", [])
    return isinstance(listed, list) and all(
        isinstance(item, dict) and item.get("filter") in ([{"function": "take_first"}], []) for item in listed
    )


def _first(repeats: int) -> list[Any]:
    return [{"vote": 1}] if repeats > 1 else []


def _chain(findings: Findings, name: str, functions: list[Any], repeats: int) -> list[Any]:
    steps: list[Any] = []
    votes, voted, taken = repeats, False, False
    for function in functions:
        rest = dict(function) if isinstance(function, dict) else {"function": function}
        kind = rest.pop("function", None)
        if taken or (voted and kind != "take_first"):
            findings.refuse("filter_list", f"`{name}` goes on with `{kind}` after its answers were reduced to one")
            rest = {}
        elif kind == "take_first":
            taken = True
        elif kind == "take_first_k":
            votes = min(votes, _whole(findings, "filter_list", f"{name}: k", rest.pop("k", votes)))
        elif kind == "majority_vote":
            voted = True
        else:
            step = _step(findings, name, str(kind), rest)
            rest = {}
            if step is not None:
                steps.append(step)
        for key in rest:
            findings.refuse("filter_list", f"`{name}`: `{kind}` has no setting `{key}` in a spec")
    if voted and repeats > 1:
        return [*steps, {"vote": votes}]
    return [*steps, *_first(repeats)]


def _step(findings: Findings, name: str, kind: str, rest: Block) -> Any:
    """One step from text to text, None where a spec has none."""
    if kind in ("remove_whitespace", "lowercase", "uppercase") and not rest:
        return {"remove_whitespace": "strip", "lowercase": "lower", "uppercase": "upper"}[kind]
    says = {"regex": "regex", "multi_choice_regex": "option"}.get(kind)
    ignores = IGNORED if says == "option" else {}
    if says is not None and set(rest) <= {"regex_pattern", "group_select", "fallback", *ignores}:
        step: Block = {says: rest.get("regex_pattern", REGEX)}
        select = rest.get("group_select", 0)
        if select != 0:
            step["pick"] = "last" if select == -1 else select
        if "fallback" in rest:
            step["fallback"] = rest["fallback"]
        return step | {ours: rest[theirs] for theirs, ours in ignores.items() if rest.get(theirs)}
    if kind == "map" and set(rest) <= {"mapping_dict", "default_value"}:
        pairs, default = rest.get("mapping_dict") or {}, rest.get("default_value")
        texts = [*pairs, *pairs.values()] if isinstance(pairs, dict) else [None]
        if isinstance(default, str) and all(isinstance(text, str) for text in texts):
            return {"map": dict(pairs), "fallback": default}
        findings.refuse("filter_list", f"`{name}`: `map` goes from texts to texts here, with a text as `default_value`")
        return None
    findings.refuse("filter_list", f"`{name}`: the filter `{kind}` has no counterpart in `filters`")
    return None


def _whole(findings: Findings, key: str, name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < least:
        findings.refuse(key, f"`{name}` must be a whole number of at least {least}, not {value!r}")
        return least
    return int(value)


def _number(findings: Findings, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        findings.refuse("generation_kwargs", f"`{key}` must be a number, not {value!r}")
        return 0.0
    if value < 0:
        findings.refuse("generation_kwargs", f"`{key}` must not be below 0, but is {value!r}")
    return value
