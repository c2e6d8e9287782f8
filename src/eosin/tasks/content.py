"""What a task is made of: the identity under which its results are kept, and whether its images are real."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from eosin.core.files import short_hash
from eosin.data import UnreadableImage
from eosin.synthetic.collection import NOTICE
from eosin.tasks.task import Task

__all__ = ["is_synthetic", "task_content"]


def task_content(task: Task) -> str:
    """Return 16 hexadecimal digits over tiles, labels, groups, split and version of a task."""
    digest = hashlib.sha256(np.ascontiguousarray(task.labels).tobytes())
    for rows in (task.train, task.val, task.test):
        digest.update(np.ascontiguousarray(rows).tobytes() + b"/")
    groups = [] if task.groups is None else task.groups.tolist()
    digest.update(json.dumps([groups, task.grouping]).encode())
    return short_hash(task.tiles.content_hash(), task.classes, task.version, digest.hexdigest())


def is_synthetic(task: Task) -> bool:
    """Tell whether a task's images are procedural: by the task, or by the notice that drawn tiles carry."""
    try:
        return task.synthetic or NOTICE.encode() in task.tiles.read(int(task.test[0]))[:2048]
    except UnreadableImage:
        return False
