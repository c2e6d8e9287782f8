"""Labelled tasks with splits that no patient crosses."""

from eosin.tasks import synthetic as _synthetic  # noqa: F401  (registers the scheme)
from eosin.tasks.content import is_synthetic, task_content
from eosin.tasks.labelled import TASKS, open_task
from eosin.tasks.splits import divide, split_hash
from eosin.tasks.task import SPLITS, Task, TaskOptions

__all__ = [
    "SPLITS",
    "TASKS",
    "Task",
    "TaskOptions",
    "divide",
    "is_synthetic",
    "open_task",
    "split_hash",
    "task_content",
]
