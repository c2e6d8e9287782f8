"""Imported by the tests' fork server: what the processes forked from it would else import or load, each for itself."""

import gc

import torch
import torch.utils.tensorboard

import eosin.cli
import eosin.core.server_process
import eosin.data.loader
import eosin.evaluate.embed_workers
import eosin.pretrain.loop
import eosin.tiling.preload
from eosin.augment.kernels import kernel

LOADED = (torch.utils.tensorboard, eosin)

kernel("jitter", torch.zeros(1, 3, 1, 1))
gc.collect()
