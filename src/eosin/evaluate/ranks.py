"""Encoders ranked over many tasks, and which of them many tasks cannot tell apart.

Scores of different tasks have no common scale, ranks have: 1 is the best on a task, equal values share their ranks'
mean. Friedman's test (JASA 1937) asks whether the encoders' average ranks differ at all; two of them differ, by the
Nemenyi test (Demšar, JMLR 7, 2006), when their average ranks are at least a critical difference apart:

    CD = q sqrt(k (k + 1) / (6 N)),   q = studentized range of k means, infinite degrees of freedom, over sqrt 2

for k encoders on N tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Ranks", "critical_difference", "ranks"]


@dataclass(frozen=True)
class Ranks:
    """Average ranks over tasks.

    Attributes:
        encoders: (encoder, average rank), best first; by name where equal.
        tasks: Tasks that were ranked: those on which every encoder has a value.
        left_out: Tasks that were not, since an encoder has no value there.
        friedman: {"statistic": chi-square with k - 1 degrees of freedom, ties corrected, "p": its tail}; None where
            it is undefined.
        critical_difference: Of average ranks, at `level`; None where there is none.
        cliques: Groups of at least two encoders, best first, whose average ranks all lie within the critical
            difference: they are not told apart. Groups within a larger one are not listed.
        reason: Why there is no test; None where there is one.
        level: Of the critical difference.
    """

    encoders: tuple[tuple[str, float], ...] = ()
    tasks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    friedman: dict[str, float] | None = None
    critical_difference: float | None = None
    cliques: tuple[tuple[str, ...], ...] = ()
    reason: str | None = None
    level: float = 0.05


def ranks(
    values: Mapping[str, Mapping[str, float | None]], higher_is_better: bool = True, *, level: float = 0.05
) -> Ranks:
    """Rank encoders over the tasks on which all of them have a value.

    Args:
        values: ``{encoder: {task: value}}``; a task that an encoder lacks, or where its value is None or NaN, is left
            out for all.
        higher_is_better: Direction of the values.
        level: Of the critical difference, in (0, 1).
    """
    names = sorted(values)
    every = sorted({task for mine in values.values() for task in mine})
    tasks = [task for task in every if all(_known(values[name].get(task)) for name in names)]
    left_out = tuple(task for task in every if task not in tasks)
    if len(names) < 2:
        return Ranks(left_out=tuple(every), reason="fewer than two encoders: there is nothing to rank", level=level)
    if not tasks:
        return Ranks(left_out=left_out, reason="no task has a value of every encoder", level=level)
    table = np.array([[values[name][task] for name in names] for task in tasks], dtype=np.float64)
    placed = _ranked(-table if higher_is_better else table)
    average = placed.mean(axis=0)
    order = sorted(range(len(names)), key=lambda place: (average[place], names[place]))
    ranked = tuple((names[place], float(average[place])) for place in order)
    if len(tasks) < 2:
        reason = "one task: average ranks over at least two are needed to tell encoders apart"
        return Ranks(ranked, tuple(tasks), left_out, reason=reason, level=level)
    difference = critical_difference(len(names), len(tasks), level)
    cliques = _cliques(ranked, difference)
    friedman = _friedman(placed)
    untested = "every encoder has the same value on every task" if friedman is None else None
    return Ranks(ranked, tuple(tasks), left_out, friedman, difference, cliques, untested, level)


def critical_difference(encoders: int, tasks: int, level: float = 0.05) -> float:
    """Return the difference of two average ranks at which the Nemenyi test tells two encoders apart.

    Args:
        encoders: k >= 2.
        tasks: N >= 1.
        level: Of the test over all pairs.
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.isf(level, encoders, np.inf)) / math.sqrt(2.0)
    return q * math.sqrt(encoders * (encoders + 1) / (6.0 * tasks))


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _ranked(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(table, axis=1), dtype=np.float64)


def _friedman(placed: npt.NDArray[np.float64]) -> dict[str, float] | None:
    from scipy.stats import chi2

    tasks, encoders = placed.shape
    # Ranks tied on a task vary less; with no ties the variance is that of 1..k, (k² - 1) / 12.
    variance = float(np.square(placed - (encoders + 1) / 2).sum()) / (tasks * (encoders - 1))
    if variance <= 0.0:
        return None
    away = placed.mean(axis=0) - (encoders + 1) / 2
    statistic = tasks * float(np.square(away).sum()) / variance
    return {"statistic": statistic, "p": float(chi2.sf(statistic, encoders - 1))}


def _cliques(ranked: tuple[tuple[str, float], ...], difference: float) -> tuple[tuple[str, ...], ...]:
    cliques: list[tuple[str, ...]] = []
    reached = 0
    for start, (_, best) in enumerate(ranked):
        # A difference that equals the critical one is significant.
        end = start + sum(rank - best < difference - 1e-12 for _, rank in ranked[start:])
        if end - start > 1 and end > reached:
            cliques.append(tuple(name for name, _ in ranked[start:end]))
            reached = end
    return tuple(cliques)
