"""One leaf task of lm-evaluation-harness as the task block of a spec, or everything that a spec cannot say of it.

Each key is carried over, left out as harmless (and named), or refused with its file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalspec.data.rows import load_rows
from evalspec.errors import EvalspecError, in_a_line, suggest
from evalspec.importing.lm_eval_data import data_block, evaluated_split, has_no_file, shots_split
from evalspec.importing.lm_eval_decode import decode_block, filter_chains, only_takes_first
from evalspec.importing.lm_eval_findings import FOREIGN, HARMLESS, Findings
from evalspec.importing.lm_eval_index import Leaf
from evalspec.importing.lm_eval_metrics import DEFAULTS, metrics
from evalspec.importing.lm_eval_python import Python, makes_rows, only_makes_rows
from evalspec.importing.lm_eval_rows import with_rows_made
from evalspec.importing.lm_eval_texts import (
    Columns,
    choice_templates,
    expression_of,
    index_template,
    target_template,
    text_template,
    yields_an_index,
)
from evalspec.importing.lm_eval_yaml import HarnessError, foreign_values, functions
from evalspec.spec.data import DataBlock

CARRIED = (
    *("task", "output_type", "dataset_path", "dataset_name", "dataset_kwargs"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "fewshot_config", "num_fewshot"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"),
    *("target_delimiter", "fewshot_delimiter", "generation_kwargs", "repeats", "filter_list", "metric_list"),
)
SHOT_SETTINGS = ("doc_to_text", "doc_to_target", "target_delimiter", "fewshot_delimiter")
"""What `fewshot_config` may say otherwise than the task and a spec can say too."""

Block = dict[str, Any]


@dataclass(frozen=True)
class Carried:
    """A task block, and what a reader of the spec must know."""

    name: str
    source: Path
    block: Block
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def carry(leaf: Leaf, root: Path, python: Python | None = None) -> Carried:
    """The task block of a leaf. File names in it start at `root` or are absolute. `python` runs what makes its rows.

    Raises HarnessError with every key that cannot be carried over.
    """
    config = with_rows_made(leaf.config, python) if python is not None else leaf.config
    findings = Findings(config, notes=list(config.notes))
    _refuse_what_no_spec_can_say(findings, python is not None)
    if findings.problems:
        raise HarnessError(findings.problems)
    block = _Task(findings, root).block()
    if findings.problems:
        raise HarnessError(list(dict.fromkeys(findings.problems)))
    left_out = tuple(key for key in leaf.config.values if key in HARMLESS)
    return Carried(leaf.name, leaf.config.path, block, left_out, tuple(findings.notes))


def _refuse_what_no_spec_can_say(findings: Findings, runs_python: bool) -> None:
    of_rows = makes_rows(findings.config)
    would_do = only_makes_rows(findings.config)
    for key, value in findings.config.values.items():
        for foreign in foreign_values(value) if key in CARRIED else ():
            findings.refuse(key, f"holds {foreign!r}; a spec holds texts, finite numbers, lists and mappings")
        for function in functions(value) if key not in HARMLESS else ():
            if runs_python and function in of_rows:
                continue
            said = f"`{key}` calls Python (`!function {function.name}`), and a spec never runs any"
            if would_do:
                said += "; `--run-python` calls it once, while importing, and keeps the rows"
            findings.problems.append(function.place.problem(said))
        if key in FOREIGN and value is not None and not functions(value):
            findings.refuse(key, FOREIGN[key])
        elif key not in CARRIED and key not in HARMLESS and key not in FOREIGN:
            findings.refuse(key, f"is no key that can be carried over.{suggest(key, [*CARRIED, *HARMLESS])}")


class _Task:
    """The parts of one task's block."""

    def __init__(self, findings: Findings, root: Path) -> None:
        self.findings = findings
        self.kind = findings.get("output_type", "generate_until")
        if not isinstance(self.kind, str) or self.kind not in DEFAULTS:
            findings.refuse("output_type", f"must be one of {', '.join(DEFAULTS)}, not {self.kind!r}")
            self.kind = "generate_until"
        self.split = evaluated_split(findings)
        self.data = data_block(findings, self.split, root)
        self.row = first_row(self.data, root, findings)
        self.root = root
        self.delimiter = findings.typed("target_delimiter", str, " ", "text")
        self.separator = findings.typed("fewshot_delimiter", str, "\n\n", "text")

    def block(self) -> Block:
        """The whole block."""
        findings = self.findings
        prompt = {
            "multiple_choice": self.choose,
            "generate_until": self.generate,
            "loglikelihood": self.score,
            "loglikelihood_rolling": self.roll,
        }[self.kind]()
        block: Block = {"data": self.data, "prompt": prompt}
        if self.kind == "generate_until":
            block["decode"] = decode_block(findings, self.separator)
            block["filters"] = filter_chains(findings, block["decode"].get("repeats", 1))
            steps = [step for chain in block["filters"].values() for step in chain]
            if any(isinstance(step, dict) and "option" in step for step in steps):
                if self.row is not None and "choices" not in self.row:
                    findings.refuse("filter_list", "`multi_choice_regex` reads the column `choices`, which is missing")
                prompt["options"] = "{{ choices }}"
        else:
            for key in ("generation_kwargs", "repeats"):
                if findings.get(key) not in (None, 1):
                    findings.note(f"`{key}` has no effect on `{self.kind}` tasks")
            if not only_takes_first(findings):
                findings.refuse("filter_list", f"filters of `{self.kind}` tasks have no counterpart")
        block["metrics"] = metrics(findings, self.kind)
        if "contexts" in prompt and "accuracy_pmi" in block["metrics"]:
            said = "`acc_mutual_info` has no counterpart where each choice is a prompt of its own"
            findings.refuse("metric_list", f"{said}: the harness then scores the choices, not what follows them")
        return block

    def text(self, key: str, default: Any = None) -> str:
        """A key's template."""
        return text_template(self.findings, key, self.findings.get(key, default), self.row)

    def base(self, template: str | None) -> Block:
        """What all prompts have: the question, what stands in front and between, the shots."""
        findings, prompt = self.findings, Block()
        if template is not None:
            prompt["template"] = template
        if findings.get("description"):
            prompt["description"] = self.text("description")
        if findings.get("gen_prefix"):
            prompt["prefix"] = self.text("gen_prefix")
        return prompt

    def choose(self) -> Block:
        """Multiple choice: one prompt and several continuations, or one continuation of several prompts."""
        findings = self.findings
        choices = choice_templates(findings, "doc_to_choice", findings.get("doc_to_choice", []), self.row)
        asked = findings.get("doc_to_text", "")
        template = self.text("doc_to_text", "") if isinstance(asked, str) else asked
        target = findings.get("doc_to_target", "")
        if yields_an_index(template, asked, self.row):
            prompt = self.base(None)
            prompt["contexts"] = choices
            prompt["continuation"] = target_template(findings, "doc_to_target", target, self.row)
            prompt["target"] = index_template(findings, "doc_to_text", asked, self.row, choices)
            if "prefix" in prompt:
                findings.refuse("gen_prefix", "has no counterpart where each choice is a prompt of its own")
        else:
            prompt = self.base(self.text("doc_to_text", ""))
            prompt["choices"] = choices
            prompt["target"] = index_template(findings, "doc_to_target", target, self.row, choices)
        return prompt | self.between() | self.shots(prompt)

    def generate(self) -> Block:
        """Generation; where there are choices, the target names one of them."""
        findings = self.findings
        prompt = self.base(self.text("doc_to_text"))
        prompt["target"] = target_template(findings, "doc_to_target", findings.get("doc_to_target"), self.row)
        if findings.get("doc_to_choice") is not None:
            choices = choice_templates(findings, "doc_to_choice", findings.get("doc_to_choice"), self.row)
            target = index_template(findings, "doc_to_target", findings.get("doc_to_target"), self.row, choices)
            listed, index = expression_of(choices), expression_of(target)
            if listed is None or index is None:
                findings.refuse(
                    "doc_to_choice", "a choice is taken from its list only where both are single expressions"
                )
            else:
                prompt["target"] = f"{{{{ {listed}[{index}] }}}}"
        return prompt | self.between() | self.shots(prompt)

    def score(self) -> Block:
        """The likelihood of a target after a prompt, with nothing between them but what the target brings."""
        findings = self.findings
        prompt = self.base(self.text("doc_to_text"))
        if prompt["template"] == "" and "description" not in prompt:
            findings.refuse("doc_to_text", "is empty: a spec scores a target without a prompt in windows")
        prompt["target"] = target_template(findings, "doc_to_target", findings.get("doc_to_target"), self.row)
        shots = self.shots(prompt)
        if shots and self.delimiter:
            shots["shots"].setdefault("delimiter", self.delimiter)
        self.delimiter = ""
        return prompt | self.between() | shots

    def roll(self) -> Block:
        """The likelihood of a whole text. The harness shows the model nothing else."""
        findings = self.findings
        for key in ("doc_to_text", "description", "num_fewshot", "gen_prefix"):
            if findings.get(key):
                findings.note(f"`{key}` has no effect on `loglikelihood_rolling` tasks")
        target = target_template(findings, "doc_to_target", findings.get("doc_to_target"), self.row)
        return {"template": "", "target": target}

    def between(self) -> Block:
        """The delimiters, where they are not the language's own defaults (which are the harness's)."""
        found = {} if self.delimiter == " " else {"delimiter": self.delimiter}
        return found if self.separator == "\n\n" else {**found, "separator": self.separator}

    def shots(self, prompt: Block) -> Block:
        """The worked examples: where they come from, how many, how they look where they look otherwise."""
        findings = self.findings
        config = findings.typed("fewshot_config", dict, {}, "a mapping")
        count = findings.typed("num_fewshot", int, 0, "a whole number")
        known = ("sampler", "split", "samples", "doc_to_choice", "gen_prefix", *SHOT_SETTINGS)
        for key, value in config.items():
            if key not in known and value is not None:
                findings.refuse("fewshot_config", f"`{key}` has no counterpart in `prompt.shots`")
        sampler = config.get("sampler") or "default"
        if sampler not in ("default", "first_n"):
            findings.refuse("fewshot_config", f"the sampler `{sampler}` has no counterpart")
        block: Block = {"n": count, "sampler": "first" if sampler == "first_n" else "random"}
        split = config.get("split") or findings.get("fewshot_split")
        if split is not None and not isinstance(split, str):
            key = "fewshot_config" if config.get("split") else "fewshot_split"
            findings.refuse(key, f"the split {split!r} is no text")
            return {}
        samples = config.get("samples")
        if split is None and samples is not None:
            rows = isinstance(samples, list) and all(isinstance(row, dict) for row in samples) and samples
            if not rows or not all(isinstance(column, str) for row in samples for column in row):
                findings.refuse("fewshot_config", "`samples` must be a list of rows, their columns named by texts")
                return {}
            block["data"] = {"rows": samples}
        elif not count and has_no_file(findings, split or shots_split(findings)):
            findings.note(
                "it asks for no shots and has no rows for any; for shots, import a YAML that includes it and says "
                "`num_fewshot`"
            )
            self.shots_of_their_own(config, prompt)  # their delimiter is also where answers end
            return {}
        else:
            block["data"] = data_block(findings, split or shots_split(findings), self.root)
        if count and sampler == "default":
            findings.note("shots are drawn by evalspec's own rule: one set for all rows, other ones than the harness's")
        block |= self.shots_of_their_own(config, prompt)
        return {"shots": block}

    def shots_of_their_own(self, config: Mapping[str, Any], prompt: Block) -> Block:
        """What shots say otherwise than the question."""
        findings, block = self.findings, Block()
        own = {key: value for key, value in config.items() if value is not None and value != findings.get(key)}
        for key in ("doc_to_choice", "gen_prefix"):
            if key in own:
                findings.refuse("fewshot_config", f"`{key}` of shots that is not the task's has no counterpart")
        if "doc_to_text" in own:
            block["template"] = text_template(findings, "fewshot_config", own["doc_to_text"], self.row)
        if "doc_to_target" in own:
            if self.kind == "multiple_choice":
                findings.refuse("fewshot_config", "`doc_to_target` of shots is carried over where there are no choices")
            block["target"] = target_template(findings, "fewshot_config", own["doc_to_target"], self.row)
        if "target_delimiter" in own:
            block["delimiter"] = str(own["target_delimiter"])
        if "fewshot_delimiter" in own:
            self.separator = str(own["fewshot_delimiter"])
            prompt |= self.between()
        return block


@lru_cache(maxsize=8)
def _first_row(block: str, root: Path) -> Columns | None:
    rows = load_rows(DataBlock.model_validate_json(block), root)
    return dict.fromkeys(rows.columns) | dict(rows.rows[0].values)


def first_row(block: Block, root: Path, findings: Findings) -> Columns | None:
    """The first row of a file that is at hand, with a null for each column that it lacks; None for anything else."""
    if "file" not in block:
        return None
    try:
        return _first_row(json.dumps(block), root)
    except EvalspecError as error:
        findings.note(f"names are taken for columns, since the data cannot be read: {in_a_line(error)}")
        return None


def task_name(name: str) -> str:
    """A name as specs have them: letters, digits, `_`, `-` and `.`, a letter first."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return plain if plain[:1].isalpha() else f"task_{plain}"
