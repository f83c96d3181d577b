"""ViT-B/32 with random weights, the full size: what exporting it costs, and what serving it adds.

    python benchmarks/full_size.py [--quick] [--json FILE]

Exports in a process of its own in both precisions (wall time and peak memory), then lets `dfer-deploy bench` alternate
the served fp32 ensemble with onnxruntime and PyTorch in process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dfer_deploy.bench import machine
from dfer_deploy.checkpoint import save_checkpoint
from dfer_deploy.files import write_json
from dfer_deploy.model.dfer_clip import DferClip
from dfer_deploy.specs import ModelSpec, PromptSpec

CLASSES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of everything")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), quick=arguments.quick)
    for export in result["exports"]:
        print(f"export {export['precision']}: {export['seconds']:.0f} s, peak {export['peak_gb']:.1f} GB")
    print(result["machine"])
    if arguments.json:
        write_json(arguments.json, result)


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Runs everything in ``folder``; the table of ``bench`` goes to stdout."""
    torch.manual_seed(0)
    checkpoint = folder / "vit_b_32.pt"
    prompts = PromptSpec(CLASSES, tuple(f"an expression of {name}." for name in CLASSES))
    save_checkpoint(checkpoint, DferClip(ModelSpec(prompts=prompts)), {"note": "random weights"})
    exports = []
    for precision in ("fp16", "fp32"):
        start = time.perf_counter()
        _dfer_deploy("export", checkpoint, "-o", folder / precision, "--target", "embedded", "--precision", precision)
        seconds = time.perf_counter() - start
        # The largest of the children so far; fp16 comes first because it needs less.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        exports.append({"precision": precision, "seconds": seconds, "peak_gb": peak})
    report = folder / "bench.json"
    rounds = "1" if quick else "5"
    _dfer_deploy("bench", folder / "fp32", "--checkpoint", checkpoint, "--rounds", rounds, "--json", report)
    return {"machine": machine(), "exports": exports, "bench": json.loads(report.read_text(encoding="utf-8"))}


def _dfer_deploy(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "dfer_deploy", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
