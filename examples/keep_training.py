"""DDP training that goes on after `kill -9` of a peer: no checkpoint, and no process restarted.

Under `rallypoint run --keep-workers`, a worker that asks for the next world keeps its process and
its model. A node that was lost takes its copy with it, and the others have theirs. Who has the
newest model gives it to newcomers. Start this on three nodes, and kill the agent and the worker of
one of them with kill -9; then start it there again:

    rallypoint run --keep-workers --endpoint host0:29400 --run-id kept --nnodes 2:3 \\
        examples/keep_training.py --pause 0.1

Do not kill the node of host0, which hosts the coordinator: see README.md. A checkpoint is still
needed against the loss of all nodes at once; docs/departures.md shows how to write one.

Needs torch and scikit-learn: pip install rallypoint[examples,torch]
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from train_ddp import digits

import rallypoint
import rallypoint.torch

BATCH = 120


class Training:
    """What a process keeps over the ends of its worlds."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2, momentum=0.9)
        self.step = None  # Nothing was trained here yet.

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def say(world, text):
    print(f"pid {os.getpid()}, round {world.number}, rank {world.rank}: {text}", flush=True)


def agree(world, training):
    """Let all go on from the newest model. Only newcomers, and who is a step behind, load it."""
    newest = world.newest(training.step)
    if newest.step is None:
        training.step = 0
        return
    giver = newest.ranks[0]
    if len(newest.ranks) < world.size:
        sent = [training.state() if world.rank == giver else None]
        dist.broadcast_object_list(sent, src=giver)
        if world.rank not in newest.ranks:
            training.load(sent[0])
            say(world, f"takes the model of step {training.step} from rank {giver}")
            return
    say(world, f"has the model of step {training.step}")


def train(world, training, images, labels, options):
    """Train to the last step, or until the members change."""
    model = DistributedDataParallel(training.model)
    while training.step < options.steps and not world.change:
        # All draw the same batch, and each takes its part of it.
        draw = torch.Generator().manual_seed(training.step)
        batch = torch.randint(len(labels), (BATCH,), generator=draw)[world.rank :: world.size]
        training.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()  # An error of a lost peer comes here: the step was not taken.
        training.optimizer.step()
        training.step += 1
        if world.rank == 0 and training.step % 25 == 0:
            say(world, f"step {training.step}: loss {loss.item():.4f}")
        time.sleep(options.pause)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0, help="seconds to sleep in each step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset, test_images, test_labels = digits()
    images, labels = dataset.tensors
    training = Training()
    with rallypoint.join() as run:
        for world in run.worlds():
            with world, rallypoint.torch.process_group(world):
                agree(world, training)
                train(world, training, images, labels, options)
                if training.step == options.steps:
                    world.barrier("trained")
                    break
    with torch.no_grad():
        guesses = training.model(test_images).argmax(dim=1)
    accuracy = (guesses == test_labels).float().mean().item()
    print(f"test accuracy {accuracy:.4f} after step {training.step}", flush=True)


if __name__ == "__main__":
    main()
