"""kaiko-eva's own training on embeddings at hand, run by the Python of an environment that has `kaiko-eva[vision]`.

    /path/to/eva/bin/python benchmarks/peers/eva_protocol.py DATA.npz RESULT.json --runs 5 --steps 12500

DATA.npz: features float32 [N, D], labels int64 [N], train, val and test rows int64, and, if runs are to start from
given weights, starts float32 [runs, D + 1, outputs], the last row being the bias. Everything that trains is eva's: its
trainer, head module, data module, metrics and callbacks as its offline configurations name them; only the data set
class is here, which keeps the embeddings in memory instead of one file an image, to eva's advantage.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from eva.core.data import dataloaders, datamodules, datasets
from eva.core.metrics import AverageLoss, BinaryClassificationMetrics, MulticlassClassificationMetrics, structs
from eva.core.models.modules import HeadModule
from eva.core.trainers import Trainer, functional
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


class Embeddings(datasets.TorchDataset):
    """Embeddings and targets in memory."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, binary: bool) -> None:
        self.features = torch.as_tensor(features)
        self.labels = torch.as_tensor(labels).to(torch.float32 if binary else torch.int64)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[index], self.labels[index]


class Started(HeadModule):
    """eva's module, whose head, once it is built, is given its first weights."""

    start: torch.Tensor | None = None

    def configure_model(self) -> None:
        """Build the head, and set its weights where some were given."""
        fresh = isinstance(self.head, dict)
        super().configure_model()
        if fresh and self.start is not None:
            with torch.no_grad():
                self.head.weight.copy_(self.start[:-1].T)
                self.head.bias.copy_(self.start[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12_500)
    parser.add_argument("--patience", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    data_file, result_file = arguments.data.resolve(), arguments.result.resolve()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    with np.load(data_file) as file:
        data = {name: file[name] for name in file.files}
    classes = int(data["labels"].max()) + 1
    binary = classes == 2
    sets = {
        split: Embeddings(data["features"][data[split]], data["labels"][data[split]], binary)
        for split in ("train", "val", "test")
    }
    monitor = "val/BinaryBalancedAccuracy" if binary else "val/MulticlassAccuracy"
    seed_everything(42, workers=True)
    outputs = 1 if binary else classes
    # A dictionary, so that every run builds a head of its own, as from eva's configuration files.
    head = {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": data["features"].shape[1], "out_features": outputs},
    }
    model = Started(
        head=head,
        criterion=torch.nn.BCEWithLogitsLoss() if binary else torch.nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.AdamW, lr=0.0003),
        metrics=structs.MetricsSchema(
            common=[
                AverageLoss(),
                BinaryClassificationMetrics() if binary else MulticlassClassificationMetrics(classes),
            ]
        ),
    )
    loader = dataloaders.DataLoader(batch_size=256, num_workers=0, persistent_workers=False, prefetch_factor=None)
    shuffling = dataloaders.DataLoader(
        batch_size=256, num_workers=0, persistent_workers=False, prefetch_factor=None, shuffle=True
    )
    module = datamodules.DataModule(
        datasets=datamodules.DatasetsSchema(train=sets["train"], val=sets["val"], test=sets["test"]),
        dataloaders=datamodules.DataloadersSchema(train=shuffling, val=loader, test=loader),
    )
    wall, cpu, scores = time.perf_counter(), time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trainer = Trainer(
            default_root_dir=folder,
            max_steps=arguments.steps,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            callbacks=[
                ModelCheckpoint(filename="best", save_last=False, save_top_k=1, monitor=monitor, mode="max"),
                EarlyStopping(min_delta=0, patience=arguments.patience, monitor=monitor, mode="max"),
            ],
        )
        for run in range(arguments.runs):
            if "starts" in data:
                model.start = torch.as_tensor(data["starts"][run])
            val, test = functional.run_evaluation(trainer, model, module, run_id=run, verbose=False)
            key = monitor.removeprefix("val/")
            scores.append({"val": float(val[0][f"val/{key}"]), "test": float(test[0][f"test/{key}"])})
        os.chdir("/")
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    result_file.write_text(json.dumps({"runs": scores, "seconds": seconds}))


if __name__ == "__main__":
    main()
