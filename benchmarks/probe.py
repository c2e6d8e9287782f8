"""Protocols and intervals against the loops they stand for: one JSON line per claim, from one run.

`--only` names parts; `--cpu` counts CPU time of the process instead of wall time, for a machine that is busy (with
`--threads 1`). kaiko-eva is compared in `eva.py`, which needs an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import numpy.typing as npt
import probe_heads
import torch
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from eosin.evaluate import open_protocol
from eosin.evaluate.knn import knn_probabilities
from eosin.evaluate.logistic import fit_path
from eosin.evaluate.metrics import METRICS
from eosin.evaluate.statistics import bootstrap_interval

Clock = Callable[[], float]
Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Head = Callable[[Features, Rows, Features], Rows]
"""Fits on features and labels, and says the classes of others."""


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, now: Clock
) -> tuple[float, float]:
    """Median seconds of each, taking turns so that a busy machine hurts both."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    ours()
    peer()
    for _ in range(repeats):
        for name, function in (("ours", ours), ("peer", peer)):
            start = now()
            function()
            times[name].append(now() - start)
    return median(times["ours"]), median(times["peer"])


def line(claim: str, ours: float, peer: float, peer_name: str, n: str) -> None:
    record = {"claim": claim, "ours": round(ours, 4), "peer": round(peer, 4), "peer_name": peer_name}
    print(json.dumps(record | {"unit": "s", "ratio": round(peer / ours, 2), "n": n}), flush=True)


def neighbors(repeats: int, train: int, test: int, width: int, now: Clock) -> None:
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
    ours_s, peer_s = interleaved(ours, peer, repeats, now)
    n = f"{train} train x {test} test x {width}, largest difference of a probability {difference:.1e}"
    line("kNN, cosine, k 20, exponential votes", ours_s, peer_s, "sklearn KNeighborsClassifier(brute)", n)


def intervals(repeats: int, images: int, classes: int, resamples: int, peer_resamples: int, now: Clock) -> None:
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
                    calibration_error(truth[rows], predicted, scores[rows].max(axis=1)),
                ]
            )
        return values

    ours_s, peer_s = interleaved(ours, peer, repeats, now)
    n = f"{images} images x {classes} classes x {len(METRICS)} metrics x {resamples} resamples"
    n += f", peer timed on {peer_resamples}"
    scaled = peer_s * resamples / peer_resamples
    line("bootstrap intervals of all metrics", ours_s, scaled, "loop over sklearn.metrics (time scaled)", n)


def calibration_error(truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error in equal bins (Guo et al., ICML 2017), as one would write it; not in scikit-learn."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    hits = np.bincount(place, weights=truth == predicted, minlength=bins)
    return float(np.abs(hits - np.bincount(place, weights=confidence, minlength=bins)).sum() / len(truth))


def heads(repeats: int, images: int, width: int, seeds: int, now: Clock) -> None:
    turns = [probe_heads.grid(images, width, 9, seeds, 2, now) for _ in range(repeats)]
    line(
        "linear-cached: all heads of all shares of the labels and seeds",
        median(turn[0] for turn in turns),
        median(turn[1] for turn in turns),
        "loop of nn.Linear and SGD (time scaled)",
        turns[0][2],
    )


def fewshot(repeats: int, images: int, width: int, draws: int, peer_draws: int, now: Clock) -> None:
    """Both heads on draws of 1 to 16 images a class, against one draw after another in NumPy and scikit-learn."""
    material, labels, parts = probe_heads.draw(images, width, 9)
    fit = probe_heads.fit_of(labels, parts, 1.0, 0)
    protocol = open_protocol(f"fewshot?draws={draws}")[0].protocol
    train, test = fit.train, material.features[fit.test]

    def near(z: Features, wanted: Rows, queries: Features) -> Rows:
        centers = np.stack([z[wanted == label].mean(axis=0) for label in range(9)])
        return np.asarray(((centers**2).sum(axis=1) - 2.0 * queries @ centers.T).argmin(axis=1))

    def regression(z: Features, wanted: Rows, queries: Features) -> Rows:
        return np.asarray(LogisticRegression(C=10.0, max_iter=1000).fit(z, wanted).predict(queries))

    for title, head, library, share in (
        ("SimpleShot", near, "NumPy", 1),
        ("logistic", regression, "scikit-learn", 4),
    ):
        names = [name for name in protocol.variants if name.startswith(f"{title.lower()}-")]

        def ours(names: list[str] = names) -> object:
            return [answer.result.probabilities for answer in protocol.answers(material, [fit], names)]

        def peer(names: list[str] = names, head: Head = head, count: int = max(1, peer_draws // share)) -> None:
            generator = np.random.default_rng(0)
            for name in names:
                shots = int(name.rpartition("-")[2])
                votes = np.zeros((len(test), 9))
                for _ in range(count):
                    picked = [generator.choice(train[labels[train] == c], shots, replace=False) for c in range(9)]
                    support = material.features[np.concatenate(picked)]
                    z, queries = unit(support - support.mean(axis=0)), unit(test - support.mean(axis=0))
                    said = head(z, np.repeat(np.arange(9), shots), queries)
                    votes[np.arange(len(test)), said] += 1.0

        count = max(1, peer_draws // share)
        ours_s, peer_s = interleaved(ours, peer, repeats if share == 1 else 1, now)
        n = f"{draws} draws x {len(names)} shot counts x {len(test)} test images x {width}, peer timed on {count}"
        line(
            f"few-shot: {title}, all draws", ours_s, peer_s * draws / count, f"loop over draws in {library} (scaled)", n
        )


def unit(values: Features) -> Features:
    """Scale rows to length 1."""
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True))


def logistic(repeats: int, images: int, width: int, now: Clock) -> None:
    """The grid of C, against scikit-learn's L-BFGS with warm starts, at the same tolerance."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % 9
    # Variances fall as 1 / rank², about as those of a small ResNet's features do, along axes of their own.
    axes, _ = np.linalg.qr(rng.normal(size=(width, width)))
    means = 0.3 * rng.normal(size=(9, width))
    drawn = (rng.normal(size=(images, width)) + means[labels]) / np.arange(1, width + 1)
    features = (drawn @ axes).astype(np.float32)
    strengths = np.logspace(-6, 5, 23)
    scaled = (features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)
    unfinished = {"ours": 0, "peer": 0}

    def ours() -> None:
        fits = fit_path(features, labels, features[:100], classes=9, strengths=strengths)
        unfinished["ours"] = sum(not fit.converged for fit in fits)

    def peer() -> None:
        model = LogisticRegression(max_iter=1000, tol=1e-6, warm_start=True)
        ended = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for strength in strengths:
                model.set_params(C=strength).fit(scaled, labels)
                ended.append(model.n_iter_[0] < 1000)
        unfinished["peer"] = len(ended) - sum(ended)

    ours_s, peer_s = interleaved(ours, peer, repeats, now)
    n = f"{images} x {width}, 9 classes, 23 C; short of 1e-6: {unfinished['ours']} and {unfinished['peer']} fits"
    line("logistic: the grid of C", ours_s, peer_s, "scikit-learn's L-BFGS, 1,000 iterations", n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tenth of the size, to see that it runs")
    parser.add_argument("--only", nargs="*", choices=("neighbors", "intervals", "heads", "fewshot", "logistic"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="CPU time of the process")
    arguments = parser.parse_args()
    share = 10 if arguments.small else 1
    now = time.process_time if arguments.cpu else time.perf_counter
    repeats = arguments.repeats
    parts = {
        "neighbors": lambda: neighbors(repeats, 10_000 // share, 10_000 // share, 768, now),
        "intervals": lambda: intervals(repeats, 10_000 // share, 9, 1000 // share, 20 // share, now),
        "fewshot": lambda: fewshot(repeats, 10_000 // share, 768, 1000 // share, 20 // share, now),
        "logistic": lambda: logistic(min(3, repeats), 1000 // share, 512 // share, now),
        "heads": lambda: heads(1 if share > 1 else min(3, repeats), 10_000 // share, 768, 5 // share or 1, now),
    }
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        for name in arguments.only or parts:
            parts[name]()


if __name__ == "__main__":
    main()
