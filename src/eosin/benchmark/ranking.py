"""Encoders ranked over the tasks of a benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from eosin.benchmark.record import Ranking, Record, version_of
from eosin.evaluate.metrics import higher_is_better
from eosin.evaluate.ranks import ranks

__all__ = ["rank_encoders"]

Split = tuple[int, str]
"""Seed, and hash of the task under it: its images, labels and split."""


def rank_encoders(records: Sequence[Record], metric: str) -> list[Ranking]:
    """Rank the encoders under every protocol and label fraction that more than one of them has a value for.

    On a task they are ranked by their means over the seeds and splits that all of them have there, so that none is
    placed by other test images, or other seeds, than the rest; a task where they share none is left out. Those whose
    results on a task are of an older version of the protocol than another's have no value there.

    Args:
        records: Of all cells.
        metric: What to rank by.
    """
    tables: dict[tuple[str, float], dict[str, dict[str, dict[Split, float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(dict))
    )
    versions: dict[tuple[str, str, float], int] = defaultdict(int)
    for record in records:
        place = record["task"], record["protocol"], float(record["fraction"])
        versions[place] = max(versions[place], version_of(record))
    for record in records:
        if version_of(record) < versions[record["task"], record["protocol"], float(record["fraction"])]:
            continue
        estimate = record["metrics"].get(metric)
        if estimate is not None and estimate["value"] is not None:
            mine = tables[record["protocol"], float(record["fraction"])][record["task"]][record["encoder"]]
            mine[record["seed"], record["task_hash"]] = float(estimate["value"])
    rankings: list[Ranking] = []
    for (protocol, fraction), tasks in tables.items():
        values: dict[str, dict[str, float | None]] = defaultdict(dict)
        for task, encoders in tasks.items():
            for encoder, mean in _shared_means(encoders).items():
                values[encoder][task] = mean
        if len(values) < 2:
            continue
        found = ranks(values, higher_is_better(metric))
        rankings.append(
            {
                "protocol": protocol,
                "fraction": fraction,
                "metric": metric,
                "tasks": list(found.tasks),
                "encoders": [{"encoder": name, "rank": rank} for name, rank in found.encoders],
                "friedman": found.friedman,
                "critical_difference": found.critical_difference,
                "cliques": [list(clique) for clique in found.cliques],
                "reason": found.reason,
            }
        )
    return rankings


def _shared_means(encoders: Mapping[str, Mapping[Split, float]]) -> dict[str, float | None]:
    """Average each encoder's values over the seeds and splits that all have; None where there are none."""
    shared = sorted(set.intersection(*(set(values) for values in encoders.values())))
    return {
        encoder: float(np.mean([values[split] for split in shared])) if shared else None
        for encoder, values in encoders.items()
    }
