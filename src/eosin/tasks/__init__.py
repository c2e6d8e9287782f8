"""Labelled tasks with splits that no patient crosses."""

# The public sets register their schemes.
from eosin.tasks import bach as _bach  # noqa: F401
from eosin.tasks import breakhis as _breakhis  # noqa: F401
from eosin.tasks import crc as _crc  # noqa: F401
from eosin.tasks import mhist as _mhist  # noqa: F401
from eosin.tasks import patch_camelyon as _patch_camelyon  # noqa: F401
from eosin.tasks import synthetic as _synthetic  # noqa: F401
from eosin.tasks.content import is_synthetic, task_content
from eosin.tasks.data_sets import DATA_SETS, DataSet
from eosin.tasks.labelled import TASKS, open_task
from eosin.tasks.splits import divide, split_hash
from eosin.tasks.task import SPLITS, Task, TaskOptions

__all__ = [
    "DATA_SETS",
    "SPLITS",
    "TASKS",
    "DataSet",
    "Task",
    "TaskOptions",
    "divide",
    "is_synthetic",
    "open_task",
    "split_hash",
    "task_content",
]
