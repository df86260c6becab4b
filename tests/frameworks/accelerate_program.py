"""A program with accelerate, which saves its state after each epoch and resumes from it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6


class Epoch:
    number = 0

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
inputs = torch.randn(64, 8)
data = DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), 8)
model = torch.nn.Linear(8, 2)
model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1), data)
epoch = Epoch()
accelerator.register_for_checkpointing(epoch)
folder = Path(sys.argv[1])
# A state is complete when its name is there: a rank may be killed while it saves.
whole = sorted(folder.glob("epoch-*.whole"))
if whole:
    accelerator.load_state(str(whole[-1].with_suffix("")))
print(
    f"starts: rank {accelerator.process_index} of {accelerator.num_processes}, "
    f"local {accelerator.local_process_index}, epoch {epoch.number}",
    flush=True,
)
while epoch.number < EPOCHS:
    print(f"epoch {epoch.number}", flush=True)
    for batch, labels in data:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.cross_entropy(model(batch), labels))
        optimizer.step()
    epoch.number += 1
    name = folder / f"epoch-{epoch.number:02}"
    accelerator.save_state(str(name))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        name.with_suffix(".whole").touch()
    time.sleep(0.3)
accelerator.wait_for_everyone()
print("done", flush=True)
accelerator.end_training()
