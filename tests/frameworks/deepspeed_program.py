"""A program with DeepSpeed's ZeRO, which saves each epoch and resumes from the last one."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import deepspeed
import torch

EPOCHS = 6

folder = Path(sys.argv[1])
# On CPUs it would first compile collectives over shared memory, which needs a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(8, 2)
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), 0.1),
    config={
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": 1},
        # DeepSpeed knows no ZeRO for SGD, and would compile an optimizer of its own for CPUs.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
)
epoch = 0
# DeepSpeed writes this file when the checkpoint of all ranks is whole.
if (folder / "latest").exists():
    _, state = engine.load_checkpoint(str(folder))
    epoch = state["epoch"]
rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
print(f"starts: rank {rank} of {size}, local {engine.local_rank}, epoch {epoch}", flush=True)
inputs = torch.randn(64, 8)
labels = (inputs.sum(1) > 0).long()
while epoch < EPOCHS:
    print(f"epoch {epoch}", flush=True)
    for batch in torch.arange(64)[rank::size].split(8):
        engine.backward(torch.nn.functional.cross_entropy(engine(inputs[batch]), labels[batch]))
        engine.step()
    epoch += 1
    engine.save_checkpoint(str(folder), tag=f"epoch-{epoch:02}", client_state={"epoch": epoch})
    time.sleep(0.3)
torch.distributed.barrier()
print("done", flush=True)
torch.distributed.destroy_process_group()
