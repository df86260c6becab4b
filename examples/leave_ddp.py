"""DDP training that leaves at a step on which all agree: no step is lost when a node must go.

All workers ask `world.should_yield(step)` before each step. When a node is going to leave (SIGTERM,
`rallypoint drain`, or a notice of its cloud), the answer is yes for all at the same step. There
they save, and the others go on from it. The checkpoint is fenced: a worker of an earlier round that
is late cannot write over it. Start this on three nodes with the same file:

    rallypoint run --preload=torch --endpoint host0:29400 --run-id leave --nnodes 2:3 \\
        --notice-file /tmp/leave examples/leave_ddp.py --checkpoint /shared/leave.pt --pause 0.1

Then `touch /tmp/leave` on one of them, but not on host0, which hosts the coordinator.
docs/departures.md has the rules.

Needs torch and scikit-learn: pip install rallypoint[examples,torch]
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from train_ddp import digits

import rallypoint
import rallypoint.torch

BATCH = 120


def save(world, path, step, model, optimizer):
    """Rank 0 writes the whole file or none, and no earlier round can write it after that."""
    if world.rank == 0:
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with world.fenced(path) as file:
            torch.save(state, file)
    world.barrier(f"saved {step}")  # Nobody leaves before the file is there.


def resume(world, path, model, optimizer):
    """All load the same checkpoint: from rank 0's claim on, no earlier round can replace it."""
    if world.rank == 0:
        world.claim(path)
    world.barrier("claimed")
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def train(world, options, model, optimizer, images, labels):
    """Train to the last step, or until a node leaves. True if that was the last step."""
    step = resume(world, options.checkpoint, model, optimizer)
    print(f"round {world.number}, rank {world.rank}: goes on from step {step}", flush=True)
    ddp = DistributedDataParallel(model)
    while step < options.steps and not world.change:
        if world.should_yield(step):
            drain = world.drain
            print(f"rank {world.rank} stops at step {step}: {drain.reason}", flush=True)
            save(world, options.checkpoint, step, model, optimizer)
            return False
        # All draw the same batch, and each takes its part of it.
        draw = torch.Generator().manual_seed(step)
        batch = torch.randint(len(labels), (BATCH,), generator=draw)[world.rank :: world.size]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(ddp(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        step += 1
        if step % options.save_every == 0:  # For a node that is lost without a notice.
            save(world, options.checkpoint, step, model, optimizer)
        time.sleep(options.pause)
    return step == options.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a file that all nodes can read and write"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--pause", type=float, default=0, help="seconds to sleep in each step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset, test_images, test_labels = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    with rallypoint.join() as run:
        for world in run.worlds():  # With `rallypoint run`, the next world is of a new process.
            with world, rallypoint.torch.process_group(world):
                if not train(world, options, model, optimizer, *dataset.tensors):
                    continue
                # No worker leaves before all are done: until then, a loss would need all of them.
                world.barrier("trained")
                if world.rank == 0:
                    guesses = model(test_images).argmax(dim=1)
                    accuracy = (guesses == test_labels).float().mean().item()
                    print(f"test accuracy {accuracy:.4f}", flush=True)
                run.close("trained")


if __name__ == "__main__":
    main()
