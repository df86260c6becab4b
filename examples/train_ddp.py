"""An ordinary torch DDP script for torchrun, without a line about Rallypoint.

It reads the variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, ...), saves a checkpoint
after each epoch, and begins from the last one. A script needs no more to survive the loss of a
node. It runs under torchrun with Rallypoint as its rendezvous, and under Rallypoint's own launcher:

    torchrun --rdzv-backend=rallypoint --rdzv-endpoint=host0:29400 --rdzv-id=ddp --nnodes=2:3 \\
        --max-restarts=3 examples/train_ddp.py --checkpoint /shared/ddp.pt --pause 1
    rallypoint run --endpoint host0:29400 --run-id ddp --nnodes 2:3 \\
        examples/train_ddp.py --checkpoint /shared/ddp.pt --pause 1

Start one of them on three nodes. Then kill the agent and the worker of one node, not of host0, with
kill -9. The other nodes' workers fail in gloo, are started again as a world of two, and continue
from the last epoch. torchrun counts that as one of each survivor's --max-restarts, whose default of
0 would end the job. `rallypoint run` counts no restart when a node was lost.

Needs torch and scikit-learn: pip install rallypoint[examples,torch]
"""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def digits():
    """Handwritten digits of 8 by 8 pixels. Every fifth one is for the test."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    held_out = torch.arange(len(labels)) % 5 == 0
    training = TensorDataset(images[~held_out], labels[~held_out])
    return training, images[held_out], labels[held_out]


def save(path, epoch, model, optimizer):
    """Write a whole file or none: a reader never sees a part of one."""
    state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def resume(path, model, optimizer):
    """Rank 0 reads the checkpoint and sends it to all. Returns the epoch to begin with."""
    is_reader = dist.get_rank() == 0 and path.exists()
    found = [torch.load(path, weights_only=True) if is_reader else None]
    dist.broadcast_object_list(found)
    state = found[0]
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epoch"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a file that all nodes can read and write"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0, help="seconds to sleep after each epoch")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    training, test_images, test_labels = digits()
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    sampler = DistributedSampler(training)
    loader = DataLoader(training, batch_size=max(1, 120 // size), sampler=sampler)

    first = resume(options.checkpoint, model, optimizer)
    if rank == 0:
        print(f"{size} workers go on from epoch {first} of {options.epochs}", flush=True)
    for epoch in range(first, options.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        if rank == 0:
            save(options.checkpoint, epoch + 1, model, optimizer)
            print(f"epoch {epoch + 1} of {options.epochs}: loss {loss.item():.4f}", flush=True)
        time.sleep(options.pause)

    if rank == 0:
        with torch.no_grad():
            guesses = model.module(test_images).argmax(dim=1)
        print(f"test accuracy {(guesses == test_labels).float().mean().item():.4f}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
