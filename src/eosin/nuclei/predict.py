"""Nuclei of images and slides, with files for QuPath, tables, label maps and pictures; a stopped run goes on.

Of each picture the outputs are there, whole, when all its blocks are done, then comes a line into `pictures.jsonl`.
Blocks of a large picture lie in `.parts` until then, so that a run that was stopped, by kill -9 too, does only what is
missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import directory_held, writable_directory
from eosin.core.stopping import stopped_alike
from eosin.nuclei.predict_run import Display, PredictRun
from eosin.nuclei.predictions import RECORDS, PredictConfig, agree, is_current, records
from eosin.slides import FoundSlide, find_slides, given_mpp
from eosin.training.guards import memory_errors

__all__ = ["PredictConfig", "Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """What `predict` did.

    Attributes:
        out: The folder.
        records: The line of every picture asked for.
        done: Pictures done now.
        kept: Pictures done before.
        seconds: Of this run.
        network_seconds: Of these the network was at work.
        windows: Windows it has seen.
    """

    out: Path
    records: tuple[dict[str, Any], ...]
    done: int
    kept: int
    seconds: float
    network_seconds: float
    windows: int

    @property
    def failed(self) -> tuple[dict[str, Any], ...]:
        """Lines of pictures without a result."""
        return tuple(record for record in self.records if record["status"] != "done")

    @property
    def nuclei(self) -> int:
        """Of all pictures."""
        return sum(record.get("nuclei", 0) for record in self.records)

    def __str__(self) -> str:
        """Return the closing line."""
        found = len(self.records) - len(self.failed)
        parts = [f"{self.out}: {self.nuclei:,} nuclei in {found:,} pictures"]
        parts.append(f"{self.done:,} done now in {self.seconds:,.0f} s, {self.kept:,} before")
        if self.failed:
            first = self.failed[0]
            parts.append(f"{len(self.failed):,} failed (first '{first['name']}': {first['reason']})")
        return "; ".join(parts)


def predict(
    model: Any,
    sources: Sequence[Path],
    out: Path,
    config: PredictConfig | None = None,
    *,
    source_mpp: str | None = None,
    progress: bool = True,
) -> Prediction:
    """Find the nuclei of images and slides; what is done already, by the same network and settings, is kept.

    Args:
        model: The network, `NucleiModel` or what has its attributes.
        sources: Images, slides and folders of them.
        out: The folder to write.
        config: Settings.
        source_mpp: µm/px of files: a number for those that do not say it, or a CSV of slide,mpp whatever they say.
        progress: Show a bar.

    Raises:
        EosinError: If a source or a setting is faulty, `out` is in use, holds predictions by another network or other
            settings, or cannot be written, or no picture could be predicted.
    """
    config = config or PredictConfig()
    started = time.monotonic()
    found = _outside(out, find_slides(list(sources), plain=True))
    remarks: list[str] = []
    fallback, table = given_mpp(found, source_mpp, "--source-mpp", remarks)
    mpp = config.mpp if config.mpp is not None else model.mpp
    writable_directory(out)
    with directory_held(out), stopped_alike():
        agree(out, model, config, mpp)
        for remark in remarks:
            warn(remark)
        before = records(out)
        missing = [file for file in found if not is_current(out, before.get(file.name), file, table.get(file.name))]
        run = PredictRun(model, out, config, mpp, fallback, table)
        if missing:
            with _memory_told(model.device), Display(len(missing), progress) as shown:
                run.all(missing, shown)
            with contextlib.suppress(OSError):
                (out / ".parts").rmdir()
        now = records(out)
    asked = [now[file.name] for file in found if file.name in now]
    result = Prediction(
        out,
        tuple(asked),
        done=len(missing) - run.failures,
        kept=len(found) - len(missing),
        seconds=time.monotonic() - started,
        network_seconds=run.network_seconds,
        windows=run.windows,
    )
    if len(result.failed) == len(asked):
        first = result.failed[0]
        raise EosinError(f"{first['path']}: {first['reason']}{_more(len(asked) - 1)}")
    return result


@contextlib.contextmanager
def _memory_told(device: torch.device) -> Iterator[None]:
    advice = "use a smaller --batch-size or --block; what is done is kept"
    try:
        with memory_errors(device, advice):
            yield
    except BrokenExecutor as error:
        raise EosinError(f"a process was killed, most often for want of memory; {advice}") from error


def _more(count: int) -> str:
    return f" ({count:,} more pictures failed, see {RECORDS})" if count else ""


def _outside(out: Path, found: Sequence[FoundSlide]) -> list[FoundSlide]:
    """Leave out what earlier runs wrote, where the output lies in a folder of pictures."""
    written = out.resolve()
    left = [file for file in found if written not in file.path.resolve().parents]
    if not left:
        raise EosinError(f"{out}: is where predictions go, and holds all the pictures given; choose another --out")
    return left
