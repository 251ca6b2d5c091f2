"""Trains one model of the zoo, top to bottom: data, model, schedule, loop, checkpoint.

    python -m evalspec.zoo.train mamba --learning-rate 2e-3 --out runs/mamba

AdamW (0.9, 0.95), warm-up, cosine to a twentieth, gradients clipped at 1, bfloat16 autocast on a GPU. Answers weigh 1
in the loss and all other tokens OTHER. Needs PyTorch, transformers (for the Transformer) and, on a GPU, Triton;
nothing else of evalspec's needs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from evalspec.zoo.architectures import FAMILIES, TRAINED_LENGTH, build, hidden_of, layers_of, without_decay
from evalspec.zoo.mixture import MARK, TASKS
from evalspec.zoo.sequences import SHORT, held_out, pieces, read_sequences, short_rows, write_sequences

OTHER = 0.02  # weight in the loss of tokens that are no answer
WARMUP = 300  # steps
FLOOR = 0.05  # of the peak learning rate, at the end


def main() -> None:
    """The command line; `--help` says what it takes."""
    parser = argparse.ArgumentParser(prog="python -m evalspec.zoo.train", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors and log.json")
    parser.add_argument("--sequences", type=int, default=430_080, help="budget: rows of 512 tokens, each seen once")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the weights; the data depend on it not")
    parser.add_argument("--data", type=Path, help="file of sequences; drawn first if it is not there")
    parser.add_argument("--evaluations", type=int, default=16, help="how often the held-out worlds are asked")
    parser.add_argument("--held-out", type=int, default=128, help="held-out sequences of each task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = arguments.data or arguments.out / "sequences.bin"
    if not data.exists():
        write_sequences(data, seed="train", count=arguments.sequences, length=TRAINED_LENGTH + 1)
    train(
        arguments.family,
        read_sequences(data, TRAINED_LENGTH + 1)[: arguments.sequences],
        {task: held_out(task, arguments.held_out, TRAINED_LENGTH + 1) for task in TASKS},
        learning_rate=arguments.learning_rate,
        batch=arguments.batch,
        seed=arguments.seed,
        evaluations=arguments.evaluations,
        device=torch.device(arguments.device),
        compiled=arguments.compile,
        out=arguments.out,
    )


def train(
    family: str,
    rows: NDArray[np.uint16],
    asked: dict[str, NDArray[np.uint16]],
    *,
    learning_rate: float,
    batch: int,
    seed: int,
    evaluations: int,
    device: torch.device,
    compiled: bool,
    out: Path,
) -> nn.Module:
    """Train on `rows` (count, length + 1) in order, once; write weights (float32) and the log into `out` as they come.

    The log has one entry an evaluation: step, tokens, seconds, the training loss since the last one, and for each task
    of `asked` the held-out loss of its answers and the share of them that are right in every token (greedy, given the
    right prefix).
    """
    torch.set_float32_matmul_precision("high")
    model = build(family, seed).to(device).train()
    if compiled:
        for layer in layers_of(family, model):
            layer.compile(dynamic=False)  # two lengths, each with kernels of its own
    judge = _judge(family, model, device, compiled)
    optimizer = _optimizer(model, learning_rate, fused=device.type == "cuda")
    data = torch.from_numpy(np.ascontiguousarray(rows).view(np.int16)).to(device)  # all of it: less than a gigabyte
    steps = len(rows) // batch
    log: dict[str, Any] = {
        "family": family, "learning_rate": learning_rate, "seed": seed, "batch": batch, "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()), "entries": [],
    }  # fmt: skip
    total = torch.zeros((), device=device)
    started, since = time.perf_counter(), 0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule(step, steps)
        ids, weight = split_marks(data[step * batch : (step + 1) * batch])
        inputs, following = ids[:, :-1], ids[:, 1:]
        if step * batch < short_rows(len(rows)):
            inputs, following, weight = (part.reshape(-1, SHORT) for part in (inputs, following, weight))
        losses, _ = judge(inputs, following)
        weight = torch.where(weight, 1.0, OTHER)
        # A mean over each sequence first, so that tasks count by their share and not by how many tokens they mark.
        loss = ((losses * weight).sum(1) / weight.sum(1)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        since += 1
        if (step + 1) % max(1, steps // evaluations) == 0 or step + 1 == steps:
            entry: dict[str, Any] = {
                "step": step + 1,
                "tokens": (step + 1) * batch * (rows.shape[1] - 1),
                "train_loss": total.item() / since,
                "seconds": time.perf_counter() - started,
                "held_out": {task: evaluate(judge, held, batch, device) for task, held in asked.items()},
            }
            if not math.isfinite(entry["train_loss"]):
                raise FloatingPointError(f"{family} at learning rate {learning_rate} diverged before step {step + 1}")
            total.zero_()
            since = 0
            log["entries"].append(entry)
            print(_line(family, learning_rate, entry), flush=True)
            (out / "log.json").write_text(json.dumps(log))
            save_file(_plain_weights(model), out / "weights.safetensors")
    return model


def schedule(step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak: linear warm-up, then half a cosine down to FLOOR."""
    warmup = min(WARMUP, max(1, steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def split_marks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Stored rows (b, l + 1) int16 → token ids (b, l + 1), and which of the l predicted ones are answers (b, l)."""
    wide = rows.long() & 0xFFFF
    return wide & (MARK - 1), (wide >= MARK)[:, 1:]


def evaluate(judge: Any, held: NDArray[np.uint16], batch: int, device: torch.device) -> dict[str, float]:
    """Mean loss of the marked tokens of `held`, and the share of marked spans that are right in every token."""
    loss = tokens = right = spans = 0.0
    for piece in pieces(held, batch):
        ids, marked = split_marks(torch.from_numpy(piece.view(np.int16).copy()).to(device))
        # Same graph as in training (no second compilation for no_grad); nothing is kept of it.
        losses, correct = judge(ids[:, :-1], ids[:, 1:])
        loss += losses.detach()[marked].sum().item()
        tokens += marked.sum().item()
        begins = marked & ~F.pad(marked, (1, 0))[:, :-1]
        span = begins.flatten().cumsum(0) - 1
        wrong = torch.zeros(int(begins.sum()), device=device)
        wrong.index_add_(0, span[marked.flatten()], (~correct[marked]).float())
        right += (wrong == 0).sum().item()
        spans += len(wrong)
    return {"loss": loss / max(1.0, tokens), "accuracy": right / max(1.0, spans)}


def _judge(family: str, model: Any, device: torch.device, compiled: bool) -> Any:
    """Token ids and those that follow (b, l) → losses (b, l) in float32, and whether each is the most likely."""
    hidden = hidden_of(family, model)

    def compare(states: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(states, model.lm_head.weight).float()
        losses = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
        return losses.view_as(following), logits.argmax(-1) == following

    if compiled:
        compare = torch.compile(compare, dynamic=False)

    def judge(inputs: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return compare(hidden(inputs), following)

    return judge


def _optimizer(model: nn.Module, learning_rate: float, *, fused: bool) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for name, p in named if not without_decay(name, p)], "weight_decay": 0.05},
            {"params": [p for name, p in named if without_decay(name, p)], "weight_decay": 0.0},
        ],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=fused,
    )


def _plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state without the tied output head, which is the embedding."""
    return {
        name: value.detach().float().cpu().contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }


def _line(family: str, learning_rate: float, entry: dict[str, Any]) -> str:
    scores = " ".join(f"{t} {v['accuracy']:.3f}/{v['loss']:.3f}" for t, v in entry["held_out"].items())
    seconds = f"{entry['seconds']:.0f} s"
    return f"{family} {learning_rate:g} step {entry['step']} {seconds} loss {entry['train_loss']:.4f} {scores}"


if __name__ == "__main__":
    main()
