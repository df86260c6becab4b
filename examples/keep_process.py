"""A process that outlives its worlds: the model stays in memory, and new processes receive it.

Under `rallypoint run` and torchrun, each round starts new workers. A program that joins by itself
need not end: it asks for the next world and continues, here without a checkpoint. Start two of
these processes, then a third. Kill any but the first with kill -9, and start another one:

    python examples/keep_process.py --endpoint 127.0.0.1:29400 --run-id kept --min-nodes 2

The first process also runs the coordinator, so the run ends with it. If every process must be
replaceable, start `rallypoint serve --port 29400` and give --endpoint http://127.0.0.1:29400.

Needs numpy and scikit-learn: pip install rallypoint[examples]
"""

import argparse
import os
import time

import numpy as np
from train_digits import BATCH, NUMBERS, Model, accuracy, digits, sum_over_workers

import rallypoint


def say(text):
    print(f"pid {os.getpid()}: {text}", flush=True)


def agree(world, model):
    """Let all continue from the model with the most steps. Only some have to fetch it."""
    # Rank 0's model cannot be used: when rank 0 is lost, a new process without a model takes its
    # place. Survivors may be one step apart, if the round ended after some of them had the sum of a
    # step and before others had it. Every sum is complete, so the model with more steps is right.
    newest = world.newest(model.step)
    giver = newest.ranks[0]
    state = f"round {world.number}: rank {world.rank} of {world.size},"
    if world.rank == giver:
        world.store.set("model", np.concatenate([model.weights, model.velocity]).tobytes())
    if world.rank in newest.ranks:
        say(f"{state} has the model of step {model.step} in memory")
        return
    model.weights, model.velocity = np.split(np.frombuffer(world.store.get("model")), 2)
    model.step = newest.step
    say(f"{state} takes the model of step {model.step} from rank {giver}")


def train(world, model, options, images, labels):
    """Train to the last step, or until the members change; see train_digits.py."""
    while model.step < options.steps and not world.change:
        batch = np.random.default_rng(model.step).choice(len(labels), BATCH, replace=False)
        mine = batch[world.rank :: world.size]
        total = sum_over_workers(world, model.step, model.gradient(images[mine], labels[mine]))
        model.update(total[:NUMBERS] / BATCH)
        if world.rank == 0 and model.step % 25 == 0:
            say(f"step {model.step}: loss {total[NUMBERS] / BATCH:.4f}")
        time.sleep(options.pause)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", required=True, help="host:port, or http://host:port")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--min-nodes", type=int, default=2)
    parser.add_argument("--max-nodes", type=int, default=8)
    parser.add_argument("--last-call", type=float, default=3, help="seconds to wait for more nodes")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds to sleep in each step")
    options = parser.parse_args()
    (training, test), model = digits(), Model()
    with rallypoint.join(
        options.run_id,
        options.endpoint,
        min_nodes=options.min_nodes,
        max_nodes=options.max_nodes,
        last_call_s=options.last_call,
    ) as run:
        for world in run.worlds():
            with world:
                agree(world, model)
                train(world, model, options, *training)
                if not world.change:
                    world.barrier("trained")
                    say(f"test accuracy {accuracy(model, *test):.4f}")
                    run.close("trained")
            if world.change:
                say(f"round {world.number} ended: {world.change.kind}")


if __name__ == "__main__":
    main()
