"""Tiles a CPU second of `eosin.synthetic.render_tile` on one core, against the target of 100. Prints one JSON line."""

from __future__ import annotations

import json
import os
import statistics
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

TARGET = 100
REPEATS, SLIDES = 5, 10


def main() -> None:
    # After the number of threads is set.
    from eosin.synthetic import TISSUES, render_tile

    for tissue in TISSUES:
        render_tile(tissue)
    rates = []
    for repeat in range(REPEATS):
        start = time.process_time()
        for slide in range(SLIDES):
            for tissue in TISSUES:
                render_tile(tissue, size=128, mpp=0.5, seed=repeat, slide=slide)
        rates.append(SLIDES * len(TISSUES) / (time.process_time() - start))
    ours = statistics.median(rates)
    line = {
        "claim": "synthetic tiles of 128 px at 0.5 µm/px, all tissues in turn, per CPU second of one core",
        "ours": round(ours, 1),
        "peer": TARGET,
        "peer_name": "target",
        "unit": "tiles/s",
        "ratio": round(ours / TARGET, 2),
        "n": REPEATS,
    }
    print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
