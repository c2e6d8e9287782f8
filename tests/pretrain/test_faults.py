"""A run that is killed again and again ends with the bits of a run that nothing disturbed.

The run's lives are children that a server, this file started as a program, forks with everything imported: a life
costs what its steps cost. A life dies of SIGKILL at a place in the code, where it is told to, or at a moment, by the
server's hand. Every life ends after a few steps at the latest, so that the run is alive until the last fault.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.encoders import load_encoder
from eosin.methods import METHODS
from eosin.pretrain.best import MEASURE, BestEncoder
from eosin.training.checkpoints import Checkpoints

EVERY = 3
"""Steps between checkpoints and between looks at the encoder."""

LONGEST = EVERY + 1
"""Steps after which a life ends if its fault has not come: past a checkpoint, short of two."""

KILLS = 20

# The first find a best encoder for certain, the first one ever; after it a score may or may not be higher.
FIRST = [
    {"at": "half-written", "name": "best.safetensors"},
    {"at": "renamed", "name": "best.safetensors"},
    {"at": "half-written", "name": "best.json"},
    {"at": "renamed", "name": "best.json"},
]
ANYWHERE = [
    {"at": "forward"},
    {"at": "backward"},
    {"at": "before optimizer"},
    {"at": "after optimizer"},
    {"at": "after step"},
    {"at": "half-written", "name": "step-*.pt"},
    {"at": "written", "name": "step-*.pt"},
    {"at": "renamed", "name": "step-*.pt"},
    {"at": "removal", "name": "step-*.pt"},
    {"at": "half a line"},
    {"at": "half-written", "name": "metrics.jsonl"},
    {"at": "half-written", "name": "environment.json"},
]
STEPS = EVERY * 19
"""More than the lives before the last get to, of which none gets further than one checkpoint."""

LAST = [
    {"at": "renamed", "name": f"step-{STEPS:08d}-*.pt"},
    {"at": "half-written", "name": "encoder.safetensors"},
    {"at": "renamed", "name": "encoder.safetensors"},
]


def plan(seed: int) -> list[dict[str, Any]]:
    """Draw the lives: kills at places and at moments, a signal, and a disk that is full twice."""
    draw = random.Random(seed)
    moments = [{"at": "moment"} for _ in range(KILLS - len(FIRST) - len(ANYWHERE) - len(LAST))]
    others = [
        {"at": "full disk", "name": "step-*.pt"},
        {"at": "full disk at a line"},
        {"at": "signal"},
    ]
    middle = [fault | {"share": draw.random(), "steps": LONGEST} for fault in ANYWHERE + moments + others]
    draw.shuffle(middle)
    return (
        [fault | {"share": 0.0, "steps": LONGEST} for fault in FIRST]
        + middle
        + [fault | {"share": 0.0, "steps": STEPS} for fault in LAST]
    )


# The server ----------------------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Sabotage:
    """Changes, in a child, the functions at which it is to die."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.at: str = fault["at"]
        self.name: str = fault.get("name", "")
        self.share: float = fault["share"]
        self.steps: int = fault["steps"]
        self.calls: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self._networks()
        self._files()
        self._log()

    def _reached(self, at: str, most: int) -> bool:
        """Count a passage of `at`; say whether it is the one, drawn among the first `most`, at which to act."""
        if self.at != at:
            return False
        self.calls[at] = self.calls.get(at, 0) + 1
        return self.calls[at] == 1 + int(self.share * most)

    def _networks(self) -> None:
        from torch.nn.modules.module import register_module_forward_hook
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        from eosin.methods import Method

        backward, after_step = torch.Tensor.backward, Method.after_step
        taken = 0

        def forward_hook(*_: Any) -> None:
            if self._reached("forward", 200):
                die()

        def dying_backward(loss: torch.Tensor) -> None:
            if self._reached("backward", LONGEST):
                node = loss.grad_fn
                for _ in range(6):
                    node = next((after for after, _ in node.next_functions if after is not None), node)
                node.register_prehook(lambda _: die())
            backward(loss)

        def before(*_: Any) -> None:
            if self._reached("before optimizer", LONGEST):
                die()

        def after(*_: Any) -> None:
            nonlocal taken
            taken += 1
            if self._reached("after optimizer", LONGEST) or taken == self.steps:
                die()

        def dying_after_step(method: Method) -> None:
            after_step(method)
            if self._reached("after step", LONGEST):
                die()
            if self._reached("signal", LONGEST - 1):
                os.kill(os.getpid(), signal.SIGTERM)

        register_module_forward_hook(forward_hook)
        register_optimizer_step_pre_hook(before)
        register_optimizer_step_post_hook(after)
        torch.Tensor.backward = dying_backward
        Method.after_step = dying_after_step

    def _files(self) -> None:
        from eosin.core import files

        mkstemp, fsync, replace, unlink = files.tempfile.mkstemp, os.fsync, Path.replace, Path.unlink

        def noted_mkstemp(**where: str) -> tuple[int, str]:
            handle, name = mkstemp(**where)
            self.names[handle] = where["prefix"].strip(".")
            return handle, name

        def dying_fsync(handle: int) -> None:
            if fnmatch.fnmatch(self.names.get(handle, ""), self.name):
                if self.at in ("half-written", "full disk"):
                    os.ftruncate(handle, os.fstat(handle).st_size // 2)
                if self.at in ("half-written", "written"):
                    die()
                if self.at == "full disk":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        def dying_replace(path: Path, target: Path) -> Path:
            moved = replace(path, target)
            if self.at == "renamed" and fnmatch.fnmatch(target.name, self.name):
                die()
            return moved

        def dying_unlink(path: Path, missing_ok: bool = False) -> None:
            if self.at == "removal" and fnmatch.fnmatch(path.name, self.name):
                die()
            unlink(path, missing_ok)

        files.tempfile.mkstemp, os.fsync = noted_mkstemp, dying_fsync
        Path.replace, Path.unlink = dying_replace, dying_unlink

    def _log(self) -> None:
        from eosin.training import run

        append = run.append_json_line

        def dying_append(path: Path, record: dict[str, Any]) -> None:
            # Two lines at the most before the checkpoint, after which none might come.
            cut, full = self._reached("half a line", 2), self._reached("full disk at a line", 2)
            if not cut and not full:
                append(path, record)
                return
            with open(path, "ab") as file:
                file.write(json.dumps(record).encode()[: -1 - int(self.share * 40)])
            if cut:
                die()
            raise EosinError(f"{path}: no space left on the device")

        run.append_json_line = dying_append


def live(request: dict[str, Any]) -> int:
    """Run one life to its end, in a child."""
    from eosin.core.console import console
    from eosin.pretrain import Interrupted, load_recipe, pretrain

    console.file = os.fdopen(os.open(request["messages"], os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8")
    if request["fault"] is not None:
        Sabotage(request["fault"])
    try:
        pretrain(load_recipe(request["config"]), Path(request["out"]))
    except EosinError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except Interrupted:
        return 15
    return 0


def serve() -> None:
    """Read a life's request from each line, fork it, and write how it ended and how long it took."""
    from eosin.augment.kernels import kernel
    from eosin.pretrain import loop

    torch.set_num_threads(1)
    # Both are for the log's MFU, which is not compared, and take longer than a life.
    loop.measure_peak = loop.count_flops = lambda *_: 1
    kernel("jitter", torch.zeros(1, 3, 1, 1))  # loads machine code, as long as a life
    # Else each child's first full collection touches, and so copies, every page of what was imported.
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = live(request)
            finally:
                os._exit(code)
        timer = threading.Timer(request["moment"], os.kill, (child, signal.SIGKILL))
        if request["moment"] is not None:
            timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - begun]), flush=True)


# The tests -----------------------------------------------------------------------------------------------------------


class Lives:
    """The server, seen from the tests."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.messages = folder / "messages.txt"
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(
        self, config: Path, out: Path, fault: dict[str, Any] | None = None, moment: float | None = None
    ) -> tuple[int, float, str]:
        """Live once; return the exit code, the seconds it took and what was said."""
        self.messages.write_text("")
        request = {"config": config, "out": out, "fault": fault, "moment": moment, "messages": self.messages}
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return code, seconds, self.messages.read_text()


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    server = Lives(tmp_path_factory.mktemp("lives"))
    yield server
    server.process.stdin.close()
    assert server.process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def labels(tile_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "tiles.csv"
    names = sorted(path.name for path in tile_folder.iterdir())
    rows = [f"{tile_folder / name},{'ab'[i % 2]},{('train', 'val', 'test')[i % 3]}" for i, name in enumerate(names)]
    path.write_text("file,label,split\n" + "\n".join(rows))
    return path


def plain(value: Any) -> Any:
    """Replace tensors by their types, shapes and bytes."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list | tuple) else value


def contents(run: Path) -> dict[str, Any]:
    """Return what a run leaves, without times."""
    timed = ("images_per_second", "data_wait", "mfu")
    records = read_json_lines(run / "metrics.jsonl")
    return {
        "files": sorted(path.name for path in run.rglob("*") if path.is_file() and path.suffix != ".pt"),
        "checkpoints": [step for step, _ in Checkpoints(run / "checkpoints").saved()],
        "state": plain(Checkpoints(run / "checkpoints").load_newest()),
        "metrics": [{k: v for k, v in r.items() if k not in timed and not k.startswith("time/")} for r in records],
        "best": json.loads((run / "best.json").read_text()),
        "encoders": [load_encoder(str(run / f"{name}.safetensors")).fingerprint() for name in ("encoder", "best")],
        "config": (run / "config.yaml").read_text(),
    }


@pytest.mark.parametrize("name", list(METHODS))
def test_killed_twenty_times(name, tiny_of, lives, labels, tmp_path):
    import yaml

    config = tmp_path / "run.yaml"
    fields = {
        "samples": STEPS * 8,
        "watch__task": f"csv:{labels}",
        "watch__every_steps": EVERY,
        "checkpoint__every_steps": EVERY,
        "log__every_steps": 2,
        "log__tensorboard": False,
        "device": "cpu",
    }
    config.write_text(yaml.safe_dump(tiny_of(name, **fields).plain()))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, seconds, said = lives(config, whole)
    assert code == 0, said
    a_life = seconds * LONGEST / STEPS
    counts: dict[int, int] = {}
    for fault in plan(list(METHODS).index(name)):
        assert not (killed / "encoder.safetensors").exists()
        moment = fault["share"] * 3 * a_life if fault["at"] == "moment" else None
        code, _, said = lives(config, killed, fault, moment)
        counts[code] = counts.get(code, 0) + 1
        if fault["at"] == "full disk":
            assert code == 2, said
            held = Checkpoints(killed / "checkpoints").saved()[-1][0]
            assert "no space left on the device; free some, or choose another output directory; " in said
            assert f"the checkpoint of step {held} is kept" in said
    assert counts == {-signal.SIGKILL: KILLS, 2: 2, 15: 1}
    code, _, said = lives(config, killed)
    assert code == 0, said
    ours, theirs = contents(killed), contents(whole)
    for part, held in theirs.items():
        assert ours[part] == held, part


class Killed(Exception):
    pass


scores = st.lists(st.one_of(st.none(), st.integers(0, 6).map(lambda n: n / 6)), min_size=1, max_size=12)
deaths = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["before", "between", "after"])), max_size=8)


@given(scores=scores, deaths=deaths, every=st.integers(1, 4))
def test_the_best_encoder_is_that_of_an_undisturbed_run(scores, deaths, every):
    """Each look is a step; a life dies at a look, before, between or after its two files are written."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        run, begin = Path(folder), 0
        for at, moment in [*deaths, (len(scores), "before")]:

            def save(encoder, path, at=at, moment=moment):
                path.write_text(encoder)
                if encoder == str(at + 1) and moment == "between":
                    raise Killed

            patch.setattr("eosin.pretrain.best.save_encoder", save)
            best = BestEncoder(run, begin)
            with contextlib.suppress(Killed):
                for look in range(begin, len(scores)):
                    if look == at and moment == "before":
                        raise Killed
                    score = scores[look]
                    best.consider(str(look + 1), look + 1, {} if score is None else {MEASURE: score})
                    if look == at:
                        raise Killed
                    if (look + 1) % every == 0:
                        begin = look + 1
        known = [score for score in scores if score is not None]
        if not known:
            assert not (run / "best.json").exists()
            return
        first = scores.index(max(known)) + 1
        assert (run / "best.safetensors").read_text() == str(first)
        held = json.loads((run / "best.json").read_text())
        assert (held["step"], held["score"]) == (first, max(known))


if __name__ == "__main__":
    serve()
