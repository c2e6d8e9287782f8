"""The files that join a benchmark's cells: leaderboard, paired tests and ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from eosin.benchmark.pooling import compare, leaderboard
from eosin.benchmark.ranking import rank_encoders
from eosin.benchmark.reading import read_comparisons
from eosin.benchmark.record import COMPARISONS, LEADERBOARD, RANKS, Comparison, Record, compared_metric
from eosin.core.errors import EosinError
from eosin.core.files import write_json_lines

__all__ = ["write_joined"]


def write_joined(out: Path, records: Sequence[Record]) -> None:
    """Write leaderboard.jsonl, comparisons.jsonl and ranks.jsonl; lines of unchanged cells are taken over.

    Tiles are compared and ranked by balanced accuracy, nuclei by PQ.

    Args:
        out: The benchmark directory.
        records: All records, in the order in which lines shall stand.
    """
    write_json_lines(out / LEADERBOARD, leaderboard(out, records))
    known = _earlier_comparisons(out)
    by_metric: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_metric[compared_metric(record)].append(record)
    tests = [test for metric, group in by_metric.items() for test in compare(out, group, metric, known)]
    write_json_lines(out / COMPARISONS, tests)
    rankings = [ranking for metric, group in by_metric.items() for ranking in rank_encoders(group, metric)]
    write_json_lines(out / RANKS, rankings)


def _earlier_comparisons(out: Path) -> list[Comparison]:
    try:
        return read_comparisons(out)
    except EosinError:
        # It is made from the predictions, and can be again.
        return []
