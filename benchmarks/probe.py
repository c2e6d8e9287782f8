"""Nearest neighbours and bootstrap intervals against scikit-learn: one JSON line per claim, from one run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from sklearn import metrics as sk
from sklearn.neighbors import KNeighborsClassifier

from eosin.evaluate.knn import knn_probabilities
from eosin.evaluate.statistics import bootstrap_interval


def interleaved(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of each, taking turns so that a busy machine hurts both."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    ours()
    peer()
    for _ in range(repeats):
        for name, function in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return median(times["ours"]), median(times["peer"])


def line(claim: str, ours: float, peer: float, peer_name: str, n: str) -> None:
    record = {"claim": claim, "ours": round(ours, 4), "peer": round(peer, 4), "peer_name": peer_name}
    print(json.dumps(record | {"unit": "s", "ratio": round(peer / ours, 2), "n": n}), flush=True)


def neighbors(repeats: int, train: int, test: int, width: int) -> None:
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(train, width)).astype(np.float32)
    queries = rng.normal(size=(test, width)).astype(np.float32)
    labels = rng.integers(0, 9, train)
    temperature = 0.07

    def ours() -> np.ndarray:
        return knn_probabilities(bank, labels, queries, classes=9, k=20, temperature=temperature)

    def votes(distances: np.ndarray) -> np.ndarray:
        return np.exp((1.0 - distances) / temperature)

    model = KNeighborsClassifier(20, algorithm="brute", metric="cosine", weights=votes).fit(bank, labels)

    def peer() -> np.ndarray:
        return model.predict_proba(queries)

    difference = float(np.abs(ours() - peer()).max())
    if difference > 1e-3:
        raise SystemExit(f"the two differ by {difference:.2g}: nothing to compare")
    ours_s, peer_s = interleaved(ours, peer, repeats)
    n = f"{train} train x {test} test x {width}, largest difference of a probability {difference:.1e}"
    line("kNN, cosine, k 20, exponential votes", ours_s, peer_s, "sklearn KNeighborsClassifier(brute)", n)


def intervals(repeats: int, images: int, classes: int, resamples: int, peer_resamples: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, classes, images)
    scores = rng.random((images, classes)) + 0.5 * np.eye(classes)[truth]
    scores /= scores.sum(axis=1, keepdims=True)

    def ours() -> object:
        return bootstrap_interval(truth, scores, resamples=resamples)

    def peer() -> list[list[float]]:
        generator = np.random.default_rng(2)
        values = []
        for _ in range(peer_resamples):
            rows = generator.integers(0, images, images)
            predicted = scores[rows].argmax(axis=1)
            values.append(
                [
                    sk.accuracy_score(truth[rows], predicted),
                    sk.balanced_accuracy_score(truth[rows], predicted),
                    sk.f1_score(truth[rows], predicted, average="macro"),
                    sk.roc_auc_score(truth[rows], scores[rows], multi_class="ovr"),
                ]
            )
        return values

    ours_s, peer_s = interleaved(ours, peer, repeats)
    n = f"{images} images x {classes} classes x 4 metrics x {resamples} resamples, peer timed on {peer_resamples}"
    scaled = peer_s * resamples / peer_resamples
    line("bootstrap intervals of four metrics", ours_s, scaled, "loop over sklearn.metrics (time scaled)", n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tenth of the size, to see that it runs")
    arguments = parser.parse_args()
    share = 10 if arguments.small else 1
    neighbors(arguments.repeats, 10_000 // share, 10_000 // share, 768)
    intervals(arguments.repeats, 1000 // share, 9, 1000 // share, 50 // share)


if __name__ == "__main__":
    main()
