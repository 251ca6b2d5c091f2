"""Turns trained weights into the Hugging Face directory that ships: config.json, weights in 16 bit, the tokenizer.

python -m evalspec.zoo.export mamba runs/mamba/weights.safetensors evalspec/zoo/mamba
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evalspec.zoo.architectures import FAMILIES, config_of
from evalspec.zoo.tokenizer import save_tokenizer

# Decay rates and step sizes act through exponentials: 16 bit would change them by per cent over long sequences.
FLOAT32 = ("A_log", "D", "dt_bias", "dt_proj.bias")


def export(family: str, weights: Path, directory: Path) -> None:
    """Write the model directory of a family from float32 weights with Hugging Face's names."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.to(torch.float32 if name.endswith(FLOAT32) else torch.float16).contiguous()
        for name, value in load_file(weights).items()
    }
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = config_of(family) | {"dtype": "float16"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m evalspec.zoo.export", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("weights", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    export(arguments.family, arguments.weights, arguments.directory)
