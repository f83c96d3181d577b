"""Compare a training step of DFER-CLIP (ViT-B/32, random weights) with plain implementations of it.

    python benchmarks/training.py [--quick] [--rounds N] [--batch-size N] [--json FILE] [--plot PNG]

Three contestants take turns, each in a separate process, so that each has its own peak memory:

- ``dfer-deploy``: text is computed up to the end of the longest prompt, gradients only for trained parts;
  bfloat16 autocast on CUDA, fp32 on a CPU.
- ``reference``: as in upstream's ``main.py``: all 77 tokens, text weights frozen, fp32.
- ``all gradients``: the same, with gradients for the text weights too, which are computed and discarded.

A step is forward, backward and SGD on clips that are already in memory. All three must agree in the first loss.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from common import draw_bars, figure, parsed, parser, positive, write
from random_model import PROMPTS, TINY
from torch import Tensor, nn

from dfer_deploy.clips.drawn import drawn_clips
from dfer_deploy.model.dfer_clip import DferClip, images_from_frames
from dfer_deploy.specs import ClipSpec, ModelSpec
from dfer_deploy.train.initialisation import trainable_parts
from dfer_deploy.train.optim_recipe import OptimRecipe
from dfer_deploy.train.optimisation import build_optimizer

CONTESTANTS = ("dfer-deploy", "reference", "all gradients")

AGREEMENT = 0.02
"""Largest relative difference of two first losses. In fp32 it is about 1e-6; bfloat16 needs this tolerance."""


class PlainDferClip(nn.Module):
    """The forward pass of upstream's ``models/Generate_Model.py``: every prompt has all 77 tokens."""

    def __init__(self, model: DferClip) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        video = F.normalize(model.temporal_net(model.encode_frames(images)), dim=-1)
        embedding = model.text_encoder.token_embedding
        prompts = model.prompt_learner(embedding)
        padding = torch.zeros(len(prompts), 77 - prompts.shape[1], dtype=torch.long, device=prompts.device)
        prompts = torch.cat([prompts, embedding(padding)], dim=1)
        text = F.normalize(model.text_encoder(prompts, model.prompt_learner.end_of_text), dim=-1)
        return video @ text.T / model.spec.temperature


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--batch-size", type=positive, default=2, help="clips in a step (default: 2)")
    options.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    arguments = parsed(options)
    if arguments.contestant:
        contestant(arguments.contestant, quick=arguments.quick, batch_size=arguments.batch_size)
        return
    result = measure(arguments.rounds, arguments.batch_size, quick=arguments.quick)
    for name, row in result["contestants"].items():
        print(
            f"{name}: {row['clips_per_s']:.3f} clips/s, peak {row['peak_gb']:.2f} GB"
            + (f", dfer-deploy is {_spread(row['speedup'])} times as fast" if "speedup" in row else "")
        )
    write(arguments, result, draw(result, quick=arguments.quick))


def measure(rounds: int, batch_size: int, *, quick: bool) -> dict[str, Any]:
    """Let the contestants alternate; a speed-up is the ratio of two steps of the same round."""
    options = ["--batch-size", str(batch_size), *(["--quick"] if quick else [])]
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--contestant", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # As in our command line; the reference implementation does not set it.
            env=os.environ | ({} if name == "reference" else {"OMP_WAIT_POLICY": "PASSIVE"}),
        )
        for name in CONTESTANTS
    }
    first = {name: _answer(child) for name, child in children.items()}
    losses = [answer["loss"] for answer in first.values()]
    if max(losses) - min(losses) > AGREEMENT * max(losses):
        raise RuntimeError(f"the contestants do not compute the same: their first losses are {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    peaks: dict[str, float] = {}
    for turn in range(rounds):
        for name in CONTESTANTS[turn % 3 :] + CONTESTANTS[: turn % 3]:
            answer = _answer(children[name], "step")
            seconds[name].append(answer["seconds"])
            peaks[name] = answer["peak_gb"]
    for child in children.values():
        child.communicate("")
    rows: dict[str, dict[str, Any]] = {}
    for name in CONTESTANTS:
        rows[name] = {
            "seconds": seconds[name],
            "clips_per_s": batch_size / statistics.median(seconds[name]),
            "peak_gb": peaks[name],
            "first_loss": first[name]["loss"],
        }
        if name != CONTESTANTS[0]:
            pairs = zip(seconds[name], seconds[CONTESTANTS[0]], strict=True)
            rows[name]["speedup"] = [theirs / ours for theirs, ours in pairs]
            rows[name]["memory_ratio"] = peaks[CONTESTANTS[0]] / peaks[name]
    return {"batch_size": batch_size, "contestants": rows}


def contestant(name: str, *, quick: bool, batch_size: int) -> None:
    """Make one step to warm up and one for every line on stdin; answer with JSON on stdout."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    spec = ModelSpec(PROMPTS, TINY if quick else ClipSpec())
    model = DferClip(spec).to(device)
    optimizer = build_optimizer(trainable_parts(model, "dfer_clip"), OptimRecipe())
    model.text_encoder.requires_grad_(name == "all gradients")
    forward: nn.Module = model if name == "dfer-deploy" else PlainDferClip(model)
    frames = torch.from_numpy(drawn_clips(batch_size, spec.clip.vision.image_size)).to(device)
    labels = torch.arange(batch_size, device=device) % len(PROMPTS.class_names)

    def step() -> dict[str, float]:
        start = time.perf_counter()
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and name == "dfer-deploy"):
            loss = F.cross_entropy(forward(images_from_frames(frames)), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        value = float(loss.detach())  # waits for the device
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _peak_memory()
        return {"seconds": seconds, "loss": value, "peak_gb": peak / 1e9}

    print(json.dumps(step()), flush=True)
    for _ in sys.stdin:
        print(json.dumps(step()), flush=True)


def draw(result: dict[str, Any], *, quick: bool) -> Any:
    """Draw two rows of bars: clips per second, with a dot for every round, and peak memory."""
    rows = result["contestants"]
    picture, (speed, memory) = figure(f"A training step, {result['batch_size']} clips", 2, height=3.0, quick=quick)
    speeds = {name: [result["batch_size"] / seconds for seconds in row["seconds"]] for name, row in rows.items()}
    draw_bars(speed, "clips a second (bar: median, dots: rounds)", speeds)
    draw_bars(memory, "peak memory, GB", {name: [row["peak_gb"]] for name, row in rows.items()})
    memory.set_yticklabels([])
    return picture


def _answer(child: subprocess.Popen[str], question: str | None = None) -> dict[str, float]:
    assert child.stdin is not None  # noqa: S101 - both are pipes
    assert child.stdout is not None  # noqa: S101
    if question is not None:
        child.stdin.write(f"{question}\n")
        child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a contestant ended with exit code {child.wait()}")
    return json.loads(line)  # type: ignore[no-any-return]


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
