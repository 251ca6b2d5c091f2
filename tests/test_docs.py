"""What the pages say can be done: links lead somewhere, commands parse, queries run, and what they name is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from evalspec.cli import parser
from evalspec.store import Store, query

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "evalspec" / "zoo").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def commands(page: Path) -> list[list[str]]:
    """The words of each command in the page's blocks of shell, pipes and chains taken apart."""
    found: list[list[str]] = []
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
                words.whitespace_split, words.commenters = True, "#"
                found.append([])
                for word in words:
                    if set(word) <= set(";&|>"):
                        found.append([])
                    else:
                        found[-1].append(word)
    return [words for words in found if words]


@each_page
def test_links_and_their_anchors_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            to = (page.parent / path).resolve() if path else page
            assert to.exists(), link
            assert not anchor or anchor in anchors(to), link


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(prose(ROOT / "README.md"))}
    assert set((ROOT / "docs").glob("*.md")) <= linked


@each_page
def test_commands_are_ones_that_there_are(page: Path, tmp_path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        program, *arguments = words
        if program.endswith("evalspec"):
            options = parser().parse_args([word for word in arguments if word != "…"])  # exits where it does not parse
            if arguments[0] == "sql":
                query(Store(tmp_path / "store.duckdb"), options.query)
        elif program == "make":
            assert set(arguments) <= targets, words
        elif program.startswith("python") and arguments[:1] == ["-m"] and arguments[1] not in ("venv", "pytest"):
            assert importlib.util.find_spec(arguments[1]), words
        assert "pip" not in words or not any(word.startswith("evalspec") for word in words), (
            "another project has this name on PyPI: `pip install '.[extra]'`"
        )


@each_page
def test_files_and_tests_that_are_named_are_there(page: Path) -> None:
    tests = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for word in re.findall(r"[\w./-]+", code):
            if re.fullmatch(r"test_\w+", word):
                assert word in tests, word
            elif re.match(
                r"(tests|evalspec|benchmarks|specs|prompts|docs|plan|execute|ssm|models|metrics|runs|store)/", word
            ):
                path = word.rstrip("./")
                made = path.startswith(("evalspec/zoo/", "specs/")) and path.endswith("NAME.yaml")
                assert made or (ROOT / path).exists() or (ROOT / "evalspec" / path).exists(), word
