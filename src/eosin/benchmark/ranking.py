"""Encoders ranked over the tasks of a benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from eosin.benchmark.record import Ranking, Standing
from eosin.evaluate.metrics import higher_is_better
from eosin.evaluate.ranks import ranks

__all__ = ["rank_encoders"]


def rank_encoders(standings: Sequence[Standing], metric: str) -> list[Ranking]:
    """Rank the encoders under every protocol and label fraction that more than one of them has a value for.

    Args:
        standings: Lines of the leaderboard.
        metric: What to rank by.
    """
    tables: dict[tuple[str, float], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for line in standings:
        estimate = line["metrics"].get(metric)
        if estimate is not None and estimate["value"] is not None:
            tables[line["protocol"], line["fraction"]][line["encoder"]][line["task"]] = estimate["value"]
    rankings: list[Ranking] = []
    for (protocol, fraction), values in tables.items():
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
