"""A program for torchrun with Lightning's Trainer; it resumes from its newest checkpoint."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6


class Model(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def training_step(self, batch: Any, index: int) -> Any:
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(self.layer(inputs), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Said(Callback):  # type: ignore[misc]
    def on_train_start(self, trainer: Any, module: Any) -> None:
        print(
            f"starts: rank {trainer.global_rank} of {trainer.world_size}, "
            f"local {trainer.local_rank}, epoch {trainer.current_epoch}",
            flush=True,
        )

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        print(f"epoch {trainer.current_epoch}", flush=True)
        time.sleep(0.3)


torch.manual_seed(0)
inputs = torch.randn(64, 8)
data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
folder = Path(sys.argv[1])
last = folder / "last.ckpt"
trainer = lightning.Trainer(
    accelerator="cpu",
    strategy="ddp",
    devices=int(os.environ["LOCAL_WORLD_SIZE"]),
    num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
    max_epochs=EPOCHS,
    callbacks=[Said(), ModelCheckpoint(folder, save_last=True, every_n_epochs=1)],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), DataLoader(data, 8), ckpt_path=str(last) if last.exists() else None)
print("done", flush=True)
