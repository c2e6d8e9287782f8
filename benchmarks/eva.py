"""The `eva` protocol against kaiko-eva itself: the same embeddings, the scores of several runs, and the time they take.

kaiko-eva's many requirements do not go with ours, so it runs in an environment of its own:

    python -m venv /tmp/eva && /tmp/eva/bin/pip install 'kaiko-eva[vision]'
    python benchmarks/eva.py --eva /tmp/eva/bin/python

With `--same-start` kaiko-eva's runs begin from the weights that ours begin from: what is left between the two is the
order of the images, and whatever is wrong.

Sets are drawn: classes overlap so that balanced accuracy lies between 0.7 and 0.95. Both start from embeddings in
memory and end with the scores of the test images. Time is CPU time of one thread, so that a busy machine matters less;
imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from timing import report

from eosin.evaluate import Fit, Material, read_embeddings
from eosin.evaluate.eva import Eva, _first_weights
from eosin.evaluate.metrics import metric_value

SETS = {"4 classes": (4, 0.65), "9 classes": (9, 1.0), "2 classes": (2, 0.6)}
"""Classes, and how far apart they are."""


def draw(classes: int, distance: float, images: int, width: int, seed: int) -> dict[str, np.ndarray]:
    """Classes around centers, with a covariance that falls off as those of real embeddings do."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    spread = np.exp(-np.arange(width) / (width / 4.0))[:, None] * rng.normal(size=(width, width)) / math.sqrt(8.0)
    shared = rng.normal(size=(images, width)) @ spread
    centers = distance * rng.normal(size=(classes, width)) / math.sqrt(width) * np.linalg.norm(spread, 2) / 4
    features = (shared + centers[labels]).astype(np.float32)
    # About the scale of class tokens after their last norm; at a fixed learning rate the scale decides how soon a head
    # has learned.
    features *= 3.0 / features.std()
    train, val, test = np.split(rng.permutation(images), [images // 2, 3 * images // 4])
    return {"features": features, "labels": labels, "train": train, "val": val, "test": test}


def ours(data: dict[str, np.ndarray], protocol: Eva, runs: int) -> tuple[list[float], float]:
    """Balanced accuracies on the test and CPU seconds of all runs."""
    labels, test = data["labels"].copy(), data["test"]
    labels[test] = -1
    fits = [Fit(labels, data["train"], data["val"], test, seed=seed) for seed in range(runs)]
    material = Material(data["features"], tuple(map(str, range(int(data["labels"].max()) + 1))))
    start = time.process_time()
    answers = sorted(protocol.answers(material, fits), key=lambda answer: answer.fit)
    seconds = time.process_time() - start
    truth = data["labels"][test]
    return [metric_value("balanced_accuracy", truth, answer.result.probabilities) for answer in answers], seconds


def theirs(python: str, data: dict[str, np.ndarray], protocol: Eva, runs: int) -> tuple[list[float], float]:
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "data.npz", Path(folder) / "result.json"
        np.savez(source, **data)
        patience = protocol.epochs_waited(len(data["train"]))
        script = Path(__file__).parent / "peers/eva_protocol.py"
        words = [python, str(script), str(source), str(result), "--runs", str(runs), "--steps", str(protocol.steps)]
        done = subprocess.run([*words, "--patience", str(patience)], capture_output=True, text=True)
        if not result.exists():
            raise SystemExit(f"{python}: eva did not run: {done.stderr.strip().splitlines()[-1:]}")
        found = json.loads(result.read_text())
    return [run["test"] for run in found["runs"]], found["seconds"]["cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eva", required=True, metavar="PYTHON", help="of an environment with kaiko-eva[vision]")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12_500, help="most, of both; the patience follows eva's rule")
    parser.add_argument("--same-start", action="store_true", help="give both the same first weights")
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--embeddings", nargs="*", type=Path, default=[], help="of eosin embed, with labels and splits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    protocol = Eva(steps=arguments.steps)
    sets = {
        name: draw(*SETS[name], arguments.images, arguments.width, number) for number, name in enumerate(arguments.sets)
    }
    for path in arguments.embeddings:
        found = read_embeddings(path)
        sets[path.stem] = {name: getattr(found, name) for name in ("features", "labels", "train", "val", "test")}
    for name, data in sets.items():
        shape = " x ".join(map(str, data["features"].shape))
        mine, seconds = ours(data, protocol, arguments.runs)
        if arguments.same_start:
            classes = int(data["labels"].max()) + 1
            width, outputs = data["features"].shape[1], 1 if classes == 2 else classes
            starts = [_first_weights(width, outputs, seed).numpy() for seed in range(arguments.runs)]
            data |= {"starts": np.stack(starts)}
        peer, peer_seconds = theirs(arguments.eva, data, protocol, arguments.runs)
        n = f"{name}, {shape}, {arguments.runs} runs, at most {arguments.steps} steps"
        n += ", same first weights" if arguments.same_start else ""
        scores = f"ours {mean(mine):.4f} sd {stdev(mine):.4f}, peer {mean(peer):.4f} sd {stdev(peer):.4f}"
        gap = abs(mean(mine) - mean(peer))
        print(json.dumps({"claim": "balanced accuracy agrees", "difference": round(gap, 5), "n": f"{n}; {scores}"}))
        report("eva's training, all runs", seconds, peer_seconds, "kaiko-eva", "s CPU", peer_seconds / seconds, n)


if __name__ == "__main__":
    main()
