"""Data-parallel training that continues when a node is lost: handwritten digits, numpy only.

It shows the native API in a worker: a world for each round, a check of `world.change` in every
step, the round's store, and a checkpoint on which all workers agree. Start it on every node with
the same directory:

    rallypoint run --endpoint host0:29400 --run-id digits --nnodes 2:4 \\
        examples/train_digits.py --checkpoints /shared/digits --pause 0.05

Without --pause it takes seconds. Two or three nodes wait 30 s for a fourth one; --last-call changes
that. On one machine, use the endpoint 127.0.0.1:29400 and a terminal for each node.

Kill a node with kill -9, or start one more: the others continue from the last epoch. The same file
also runs without `rallypoint run`. Then each process is a node, alone or with others:

    python examples/train_digits.py --checkpoints /tmp/digits
    RALLYPOINT_ENDPOINT=host0:29400 RALLYPOINT_RUN_ID=digits RALLYPOINT_NNODES=2:4 \\
        python examples/train_digits.py --checkpoints /shared/digits --pause 0.05

Needs numpy and scikit-learn: pip install rallypoint[examples]
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import rallypoint

PIXELS, CLASSES, BATCH, RATE, MOMENTUM = 64, 10, 120, 0.5, 0.9
NUMBERS = PIXELS * CLASSES + CLASSES
NEWEST = "newest.npz"


@dataclass
class Model:
    """Multinomial logistic regression: 640 weights, 10 biases, and the number of steps so far."""

    step: int = 0
    weights: np.ndarray = field(default_factory=lambda: np.zeros(NUMBERS))
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(NUMBERS))

    def scores(self, images):
        split = PIXELS * CLASSES
        return images @ self.weights[:split].reshape(PIXELS, CLASSES) + self.weights[split:]

    def gradient(self, images, labels):
        """The gradient, summed over the images. The last number is the loss."""
        scores = self.scores(images)
        scores -= scores.max(axis=1, keepdims=True)
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        loss = -np.log(chances[np.arange(len(labels)), labels]).sum()
        chances[np.arange(len(labels)), labels] -= 1
        return np.concatenate([(images.T @ chances).ravel(), chances.sum(axis=0), [loss]])

    def update(self, gradient):
        self.velocity = MOMENTUM * self.velocity - RATE * gradient
        self.weights = self.weights + self.velocity
        self.step += 1


def digits():
    """1797 images of 8 by 8 pixels. Every fifth one is in the test set."""
    images, labels = load_digits(return_X_y=True)
    images, held_out = images / 16, np.arange(len(labels)) % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def accuracy(model, images, labels):
    return float((model.scores(images).argmax(axis=1) == labels).mean())


def sum_over_workers(world, step, mine):
    """The sum of all workers' numbers. All add in rank order, so all get exactly the same sum.

    It goes through the store, which is good for 650 numbers. Use the collectives of
    torch.distributed, NCCL or JAX for a real model; Rallypoint gives them their ranks.
    """
    world.store.set(f"part/{step}/{world.rank}", mine.tobytes())
    parts = world.store.multi_get([f"part/{step}/{rank}" for rank in range(world.size)])
    # A worker that has sent its part of this step has read all parts of the step before.
    world.store.delete_key(f"part/{step - 1}/{world.rank}")
    return np.sum([np.frombuffer(part) for part in parts], axis=0)


def save(model, directory, world):
    """Write a whole file or none, and never over that of a later round: see docs/departures.md."""
    with world.fenced(directory / NEWEST) as file:
        np.savez(file, step=model.step, weights=model.weights, velocity=model.velocity)


def resume(directory, world):
    """All load the same checkpoint: from rank 0's claim on, no earlier round can replace it."""
    if world.rank == 0:
        world.claim(directory / NEWEST)
        world.store.set("claimed", "yes")
    world.store.get("claimed")
    if not (directory / NEWEST).exists():
        return Model()
    with np.load(directory / NEWEST) as saved:
        return Model(int(saved["step"]), saved["weights"], saved["velocity"])


def train(world, options, images, labels):
    """Train to the last epoch, or until the members change."""
    model, losses = resume(options.checkpoints, world), []
    epoch_steps = len(labels) // BATCH
    if world.rank == 0:
        at = f"epoch {model.step // epoch_steps} of {options.epochs}"
        print(f"round {world.number}: {world.size} workers go on from {at}", flush=True)
    while model.step < options.epochs * epoch_steps and not world.change:
        if world.should_yield(model.step):  # A node leaves: all stop here, and no step is lost.
            if world.rank == 0:
                save(model, options.checkpoints, world)
            world.barrier("saved")
            return None
        epoch, number = divmod(model.step, epoch_steps)
        order = np.random.default_rng(epoch).permutation(len(labels))  # The same for all.
        batch = order[number * BATCH : (number + 1) * BATCH]
        mine = batch[world.rank :: world.size]  # Works for any number of workers.
        total = sum_over_workers(world, model.step, model.gradient(images[mine], labels[mine]))
        # Either `total` has all parts, or an error has ended this world: no step is incomplete. One
        # worker may be a step ahead of another when the round ends. That does no harm, since the
        # next world begins from the checkpoint.
        model.update(total[:NUMBERS] / BATCH)
        losses.append(total[NUMBERS] / BATCH)
        if world.rank == 0 and number == epoch_steps - 1:
            save(model, options.checkpoints, world)
            print(f"epoch {epoch + 1} of {options.epochs}: loss {np.mean(losses):.4f}", flush=True)
            losses.clear()
        time.sleep(options.pause)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoints",
        type=Path,
        required=True,
        help="a directory that all nodes can read and write",
    )
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--pause", type=float, default=0, help="seconds to sleep in each step")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    training, test = digits()
    with rallypoint.join() as run:  # `rallypoint run` or the environment names the run.
        for world in run.worlds():
            with world:  # The loss of a peer ends this block, and the next world begins.
                model = train(world, options, *training)
                if world.change or model is None:
                    continue
                # No worker leaves before all are done: until then, a loss would need all of them.
                world.barrier("trained")
                if world.rank == 0:
                    print(f"test accuracy {accuracy(model, *test):.4f}", flush=True)
                run.close("trained")


if __name__ == "__main__":
    main()
