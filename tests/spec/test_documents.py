"""What is committed beside the code says what the code says: the schema, the reference, the shipped specs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalspec.errors import SpecError
from evalspec.spec import load, loads
from evalspec.spec.reference import DOCUMENT, updated
from evalspec.spec.schema import COMMITTED, schema, schema_text

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "specs").rglob("*.yaml") if not path.name.endswith(".part.yaml"))
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)


def accepts(values: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema(plugins=False)).is_valid(values))


def rag() -> Any:
    return yaml.safe_load((ROOT / "specs" / "rag.yaml").read_text())


def test_the_committed_schema_is_the_blocks() -> None:
    assert COMMITTED.read_text() == schema_text(plugins=False), "run `python -m evalspec.spec.schema`"


def test_the_committed_reference_is_the_blocks() -> None:
    document = DOCUMENT.read_text()
    assert document == updated(document), "run `python -m evalspec.spec.reference`"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_spec_is_valid_and_the_schema_accepts_it(path: Path) -> None:
    loaded = load(path)
    assert loaded.cells or loaded.measured
    assert accepts(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_spec_names_the_schema_for_editors(path: Path) -> None:
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(.+)$", path.read_text(), re.MULTILINE)
    assert (path.parent / named).resolve() == COMMITTED.resolve()


def test_the_demonstration_keeps_its_shape() -> None:
    loaded = load(ROOT / "specs" / "rag.yaml")
    assert list(loaded.spec.models) == ["transformer", "mamba", "mamba2"]
    assert list(loaded.spec.tasks) == ["open_book", "gold_place", "distractors", "order", "abstention"]
    counts = Counter(cell.task_name for cell in loaded.cells)
    assert counts == {
        "open_book": 3 * (1 + 4 * 4),
        "gold_place": 3 * 3,
        "distractors": 3 * 2 * 4,
        "order": 3 * 3,
        "abstention": 3 * 2 * 2,
    }


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tasks", "open_book", "prompt", "shots"), {"n": 2, "sampler": "first"}),
        (("tasks", "open_book", "prompt", "shots"), 0),
        (("tasks", "open_book", "metrics"), ["recall@3", {"metric": "ndcg", "k": 2}]),
        (("tasks", "open_book", "decode"), None),
        (("models", "mamba"), None),  # takes an included model away
        (("models", "mine"), {"weights": "owner/model", "extends": "mamba"}),
        (("sweep",), {"zip": {"models.a.dtype": ["float32"]}, "tasks.*.prompt.shots": [1]}),
        (("include",), ["a.yaml"]),
        (("tasks", "_base"), {"metrics": ["contains"]}),
        (("measure",), {"lengths": [128, 512], "kinds": ["prefill"]}),
        (("measure",), None),
    ],
)
def test_the_schema_accepts_what_the_language_allows(path: tuple[str, ...], value: Any) -> None:
    values = inside = rag()
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    assert accepts(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tasks", "open_book", "retrieval", "retreiver"), "bm25"),
        (("tasks", "open_book", "retrieval", "retriever"), "bm52"),
        (("tasks", "open_book", "retrieval", "k"), 0),
        (("tasks", "open_book", "prompt", "shots"), -1),
        (("tasks", "open_book", "metrics"), ["exact_match@3"]),
        (("tasks", "open_book", "metrics"), ["exactmatch"]),
        (("tasks", "open_book", "data", "generate"), "world.question"),
        (("models", "mamba", "dtype"), "float61"),
        (("models", "my model"), {"weights": "x"}),
        (("sweep",), {"open_book.retrieval.k": [1]}),
        (("measure",), {"lengths": [0]}),
        (("measure",), {"lengths": [8], "kinds": ["prefil"]}),
    ],
)
def test_the_schema_underlines_what_is_wrong(path: tuple[str, ...], value: Any) -> None:
    values = inside = rag()
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    assert not accepts(values)


def test_every_key_is_described() -> None:
    described = schema(plugins=False)
    for name, block in {"Spec": described, **described["$defs"]}.items():
        for key, field in block["properties"].items():
            assert field.get("description"), f"{name}.{key} has no description"


@pytest.mark.parametrize("text", BLOCKS, ids=lambda text: text.splitlines()[0])
def test_an_example_of_the_documentation_works(text: str, tmp_path: Path) -> None:
    """A whole spec loads by itself, a fragment laid over the demonstration."""
    if text.startswith("# fragment"):
        assert accepts(yaml.safe_load(text))
        # An example may sweep otherwise; what the demonstration expects of its own cells is left out.
        demonstration = (ROOT / "specs" / "rag.yaml").read_text().partition("\nhypotheses:")[0] + "\n"
        (tmp_path / "rag.yaml").write_text(demonstration)
        (tmp_path / "over.yaml").write_text(text if "include:" in text else f"include: rag.yaml\n{text}")
        assert load(tmp_path / "over.yaml", root=ROOT).cells
    else:
        assert loads(text, root=ROOT).cells


def test_the_error_in_the_documentation_is_the_error_one_gets(tmp_path: Path) -> None:
    text = (ROOT / "specs" / "rag.yaml").read_text()
    lines = text.replace("      retriever: bm25            # none", "      retreiver: bm25 # none").split("\n")
    lines[:] = [line for line in lines if not line.startswith("#") or "yaml-language-server" in line]
    at = next(index for index, line in enumerate(lines) if "retreiver" in line)
    lines[at] = "      retreiver: bm25"
    lines[0:0] = [""] * (20 - at)
    with pytest.raises(SpecError) as caught:
        loads("\n".join(lines), root=ROOT, name="specs/rag.yaml")
    shown = [line.removeprefix("    ") for line in DOCUMENT.read_text().split("\n")]
    start = shown.index(str(caught.value).split("\n")[0])
    assert shown[start : start + 3] == str(caught.value).split("\n")


HEAVY = ("torch", "transformers", "duckdb", "pandas", "numpy", "altair")


def test_loading_a_spec_imports_nothing_heavy_and_takes_a_blink() -> None:
    code = (
        "import sys; from evalspec.spec import load; load('specs/rag.yaml');"
        f"sys.exit(','.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 2.0, "0.3 s on an idle machine; the bound leaves room for a busy one"


def test_the_schema_is_json_with_a_newline() -> None:
    assert json.loads(schema_text()) == schema()
    assert schema_text().endswith("}\n")
