"""The page's opening: who is best on each task, whether that means anything, and what to be careful about."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eosin.benchmark.record import Comparison, Record, Standing, version_of
from eosin.evaluate.metrics import METRICS
from eosin.report.load import Results

__all__ = [
    "HEADLINE",
    "METRIC_NAMES",
    "Finding",
    "best_of",
    "caveats",
    "findings",
    "headline_metric",
    "higher_is_better",
    "in_sentence",
    "in_words",
    "is_headline",
    "metric_name",
    "overview",
]

HEADLINE = "balanced_accuracy"
NUCLEI_HEADLINE = "pq"
METRIC_NAMES = {
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "calibration_error": "Calibration error",
    "balanced_accuracy_lost": "Balanced accuracy lost",
    "accuracy_lost": "Accuracy lost",
    "macro_f1_lost": "Macro F1 lost",
    "auroc_lost": "AUROC lost",
    "embedding_moved": "Embedding moved",
    "pq": "PQ",
    "aji": "AJI",
    "dice": "Dice",
    "dq": "DQ",
    "sq": "SQ",
    "aji_plus": "AJI+",
    "bpq": "bPQ",
    "pq_set": "PQ of pooled counts",
    "f_d": "F of detection",
    "mpq_set": "mPQ of pooled counts",
    "mpq_image": "mPQ by image",
    "mpq_pannuke": "mPQ as PanNuke’s",
    "type_accuracy": "Type accuracy",
}
_OF_TYPE = {"f": "F", "pq": "PQ"}
"""What stands before the colon of a type's metric."""
_PROPER = ("Dice", "Macro")
"""First words of names that keep their capital."""
_LEVEL = 0.05
_FEW_IMAGES = 200
_FEW_GROUPS = 30


@dataclass(frozen=True)
class Finding:
    """What a task and protocol say.

    Attributes:
        protocol: Its name.
        fraction: Share of labels.
        best: The standing with the highest value.
        tone: "clear" when the best differs from every other encoder, "open" when it does not, "none" when nothing
            was compared.
        sentence: In words.
    """

    protocol: str
    fraction: float
    best: Standing
    tone: str
    sentence: str


def metric_name(metric: str) -> str:
    """Return a metric's name to show."""
    kind, separator, of = metric.partition(":")
    if separator and kind in _OF_TYPE:
        return f"{_OF_TYPE[kind]} of {of}"
    return METRIC_NAMES.get(metric, metric)


def in_sentence(metric: str) -> str:
    """Return a metric's name as it stands inside a sentence: "balanced accuracy", "PQ"."""
    name = metric_name(metric)
    word = name.partition(" ")[0]
    return name[0].lower() + name[1:] if word[1:].islower() and word not in _PROPER else name


def headline_metric(results: Results, task: str | None = None) -> str:
    """Return the metric that leads the page, or what is said of a task.

    It is the one compared, else balanced accuracy or PQ, else the first there is.
    """
    records = [record for record in results.records if task in (None, record["task"])]
    names = [name for record in records for name in record["metrics"]]
    compared = [test["metric"] for test in results.comparisons if task in (None, test["task"])]
    return next((name for name in [*compared, HEADLINE, NUCLEI_HEADLINE] if name in names), names[0])


def higher_is_better(metric: str) -> bool:
    """Return the direction of a metric: of an error, of what is lost and of what moved, less is better."""
    known = METRICS.get(metric)
    if known is not None:
        return known.higher_is_better
    return not metric.endswith(("_lost", "_moved", "_error"))


def is_headline(protocol: str, fraction: float) -> bool:
    """Return whether a condition belongs to the summary: all labels, unchanged images, no few-shot episodes."""
    return fraction == 1.0 and not protocol.startswith(("shift:", "fewshot:"))


def best_of(standings: Iterable[Standing], metric: str) -> Standing | None:
    """Return the standing with the best value of a metric; None when none has one."""
    sign = 1 if higher_is_better(metric) else -1
    scored = [(sign * value, line) for line in standings if (value := _value(line, metric)) is not None]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _value(line: Standing, metric: str) -> float | None:
    return line["metrics"].get(metric, {"value": None})["value"]


def findings(results: Results, task: str, metric: str) -> list[Finding]:
    """Return one finding per protocol and fraction of a task, in the order of the records.

    Few-shot episodes, changed images and fractions of the labels have figures of their own: where a task has
    conditions without these, only those are summed up.
    """
    groups: dict[tuple[str, float], list[Standing]] = defaultdict(list)
    for line in results.standings:
        if line["task"] == task:
            groups[line["protocol"], line["fraction"]].append(line)
    chief = {key: lines for key, lines in groups.items() if is_headline(*key)}
    if chief:
        groups = defaultdict(list, chief)
    tests: dict[tuple[str, float], list[Comparison]] = defaultdict(list)
    for entry in results.comparisons:
        if entry["task"] == task:
            tests[entry["protocol"], entry["fraction"]].append(entry)
    found = []
    for (protocol, fraction), lines in groups.items():
        best = best_of(lines, metric)
        if best is not None:
            tone, sentence = _verdict(tests[protocol, fraction], best, lines, metric)
            found.append(Finding(protocol, fraction, best, tone, sentence))
    return found


def overview(found: Sequence[Finding]) -> str:
    """Say in a sentence or two which encoders lead how often, and how often that is more than chance.

    Args:
        found: The findings of all tasks.

    Returns:
        "" when there is nothing to sum up.
    """
    if len(found) < 2 or all(finding.tone == "none" for finding in found):
        return ""
    wins = Counter(finding.best["encoder"] for finding in found)
    leader, count = wins.most_common(1)[0]
    total = len(found)
    clear = sum(finding.tone == "clear" for finding in found)
    if count == total:
        first = f"{leader} scores highest in all {total} pairings of a task and a protocol"
    else:
        others = in_words([f"{name} in {number}" for name, number in wins.most_common()[1:]])
        first = f"{leader} scores highest in {count} of {total} pairings of a task and a protocol, {others}"
    if clear == total:
        return f"{first}; each time the lead over every other encoder is more than chance."
    if not clear:
        return f"{first}, but in none is the lead over every other encoder more than chance."
    return f"{first}; in {clear} the lead over every other encoder is more than chance."


def _verdict(
    comparisons: Sequence[Comparison], best: Standing, lines: Sequence[Standing], metric: str
) -> tuple[str, str]:
    others = [line["encoder"] for line in lines if line["encoder"] != best["encoder"]]
    if not others:
        return "none", "The only encoder here, so there is nothing to compare it with."
    tests = {}
    for entry in comparisons:
        if entry["metric"] == metric and best["encoder"] in (entry["encoder"], entry["reference"]):
            ahead = entry["encoder"] == best["encoder"]
            other = entry["reference"] if ahead else entry["encoder"]
            tests[other] = (entry["difference"] if ahead else -entry["difference"], entry["p_holm"])
    untested = [name for name in others if name not in tests]
    if untested:
        return "none", f"Not compared with {in_words(untested)}: no paired test on the same images is stored."
    tied = [name for name in others if tests[name][1] >= _LEVEL]
    if tied:
        closest = max(tests[name][1] for name in tied)
        rest = "" if len(tied) == len(others) else "; the others are lower"
        return "open", f"Not told apart from {in_words(tied)} by this test (p\N{NO-BREAK SPACE}{_p(closest)}){rest}."
    runner = min(others, key=lambda name: tests[name][0])
    worst = max(tests[name][1] for name in others)
    lead = f"{tests[runner][0]:.3f}"
    if len(others) == 1:
        return "clear", f"Ahead of {runner} by {lead} (p\N{NO-BREAK SPACE}{_p(worst)})."
    what = "both others" if len(others) == 2 else f"all {len(others)} others"
    return "clear", f"Ahead of {what}; the next, {runner}, is {lead} lower (p\N{NO-BREAK SPACE}{_p(worst)})."


def in_words(names: Sequence[str]) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _p(value: float) -> str:
    text = "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def caveats(results: Results) -> list[str]:
    """Return what limits the conclusions, most important first, each in a sentence or two."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in results.records:
        by_task[record["task"]].append(record)
    found: list[str] = []
    for task, records in by_task.items():
        found += _about_task(task, records)
    found += _about_color(results)
    found += _about_seeds(results.records)
    found += _about_versions(by_task)
    if results.older:
        count = results.older
        found.append(
            f"{count} {'result' if count == 1 else 'results'} of older versions of a protocol left out, as the same "
            "encoder has newer ones."
        )
    if results.failures:
        count = len(results.failures)
        found.append(
            f"{count} {'cell has' if count == 1 else 'cells have'} no result; the leaderboard shows them as gaps."
        )
    return found


def _about_task(task: str, records: Sequence[Record]) -> list[str]:
    found = []
    fewest = min(record["n_test"] for record in records)
    grouping = records[0].get("grouping", "image")
    groups = min(record.get("n_groups", record["n_test"]) for record in records)
    if fewest < _FEW_IMAGES:
        found.append(f"{task}: only {fewest} test images, so intervals are wide and small differences stay hidden.")
    if grouping == "image":
        found.append(
            f"{task}: patients and slides are unknown, so single images are resampled. If several images come from one "
            "patient, scores are optimistic and intervals too narrow."
        )
    elif groups < _FEW_GROUPS:
        found.append(f"{task}: the test images come from {groups} {grouping}s only; intervals from so few are rough.")
    found += [f"{task}: {note}." for note in dict.fromkeys(n for record in records for n in record.get("notes", ()))]
    unreadable = max(record.get("n_unreadable", 0) for record in records)
    if unreadable:
        found.append(f"{task}: {unreadable:,} tiles could not be read and were left out.")
    return found


def _about_color(results: Results) -> list[str]:
    """Name the tasks on which color alone does as well as the best encoder."""
    colors = {r["encoder"] for r in results.records if str(r.get("architecture", "")).startswith("color:")}
    found = []
    for task in dict.fromkeys(record["task"] for record in results.records):
        metric = headline_metric(results, task)
        for finding in findings(results, task, metric):
            best = finding.best
            rivals = [
                line
                for line in results.standings
                if (line["task"], line["protocol"], line["fraction"]) == (task, best["protocol"], best["fraction"])
                and line["encoder"] in colors
            ]
            color = best_of(rivals, metric)
            low = best["metrics"][metric]["low"]
            value = _value(color, metric) if color else None
            if color and value is not None and (best["encoder"] in colors or (low is not None and value >= low)):
                found.append(
                    f"{task}, {finding.protocol}: color alone ({color['encoder']}) reaches {value:.3f}, level with the "
                    "highest score. Nothing here shows that an encoder sees more than color."
                )
    return found


def _about_seeds(records: Sequence[Record]) -> list[str]:
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    weights: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        pair = (record["encoder"], record["task"])
        seeds[pair].add(record["seed"])
        weights[pair].add(f"{record.get('fingerprint')}/{record.get('split_hash')}")
    if all(len(values) == 1 for values in seeds.values()):
        return ["One seed only: how much another pre-training run, split or probe would change is not measured."]
    fixed = sorted({encoder for (encoder, task), n in seeds.items() if len(n) > 1 and len(weights[encoder, task]) == 1})
    if fixed:
        return [
            f"{in_words(fixed)}: the same weights and the same split under every seed, so the spread over seeds is "
            "that of what is fitted to them alone."
        ]
    return []


def _about_versions(by_task: dict[str, list[Record]]) -> list[str]:
    found = []
    for task, records in by_task.items():
        per_seed: dict[tuple[int, str], set[str]] = defaultdict(set)
        versions: dict[str, set[int]] = defaultdict(set)
        for record in records:
            per_seed[record["seed"], ""].add(str(record.get("split_hash")))
            versions[record["protocol"]].add(version_of(record))
        if any(len(hashes) > 1 for hashes in per_seed.values()):
            found.append(f"{task}: results on different splits stand side by side; compare only equal split hashes.")
        for protocol, numbers in versions.items():
            if len(numbers) > 1:
                listed = in_words([str(number) for number in sorted(numbers)])
                found.append(
                    f"{task}, {protocol}: versions {listed} of the protocol stand side by side and are not comparable; "
                    "encoders of different versions are neither tested nor ranked against each other."
                )
        precisions = {str(record["precision"]) for record in records if record.get("precision")}
        if len(precisions) > 1:
            found.append(f"{task}: results in {in_words(sorted(precisions))} stand side by side.")
    return found
