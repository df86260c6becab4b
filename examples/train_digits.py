"""Data-parallel training that goes on when a node is lost: handwritten digits, numpy only.

It shows the native API in a worker: a world per round, `world.change` looked at in every step, the
round's store, and a checkpoint that all agree on. Start it on every node with the same directory:

    rallypoint run --endpoint host0:29400 --run-id digits --nnodes 2:4 \\
        examples/train_digits.py --checkpoints /shared/digits --pause 0.05

Without --pause it is over in seconds. Two or three nodes wait 30 s for a fourth, unless told
otherwise by --last-call. On one machine the endpoint is 127.0.0.1:29400, in a terminal per node.

Kill a node with kill -9, or start one more: the others go on from the last epoch. The same file
runs without `rallypoint run` too, a process being a node then; alone, or with others:

    python examples/train_digits.py --checkpoints /tmp/digits
    RALLYPOINT_ENDPOINT=host0:29400 RALLYPOINT_RUN_ID=digits RALLYPOINT_NNODES=2:4 \\
        python examples/train_digits.py --checkpoints /shared/digits --pause 0.05

Needs numpy and scikit-learn: pip install rallypoint[examples]
"""

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import rallypoint

PIXELS, CLASSES, BATCH, RATE, MOMENTUM = 64, 10, 120, 0.5, 0.9
NUMBERS = PIXELS * CLASSES + CLASSES


@dataclass
class Model:
    """Multinomial logistic regression: 640 weights and 10 biases, and how far it has come."""

    step: int = 0
    weights: np.ndarray = field(default_factory=lambda: np.zeros(NUMBERS))
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(NUMBERS))

    def scores(self, images):
        split = PIXELS * CLASSES
        return images @ self.weights[:split].reshape(PIXELS, CLASSES) + self.weights[split:]

    def gradient(self, images, labels):
        """Summed over the images, with the loss as one more number at the end."""
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
    """1797 images of 8 by 8 pixels: a training set, and a test set of every fifth one."""
    images, labels = load_digits(return_X_y=True)
    images, held_out = images / 16, np.arange(len(labels)) % 5 == 0
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def accuracy(model, images, labels):
    return float((model.scores(images).argmax(axis=1) == labels).mean())


def sum_over_workers(world, step, mine):
    """Everybody's numbers, added up in rank order, so that all get the same sum.

    Through the store: right for 650 numbers, and not for a real model, whose gradients belong into
    the collectives of torch.distributed, NCCL or JAX. Rallypoint gives those their ranks.
    """
    world.store.set(f"part/{step}/{world.rank}", mine.tobytes())
    parts = world.store.multi_get([f"part/{step}/{rank}" for rank in range(world.size)])
    # Who has sent its part of this step has read all parts of the step before: they can go.
    world.store.delete_key(f"part/{step - 1}/{world.rank}")
    return np.sum([np.frombuffer(part) for part in parts], axis=0)


def save(model, directory, world):
    """Whole or not at all, and never over a file that another round may be reading."""
    name = f"step-{model.step:06}-round-{world.number:04}.npz"
    part = directory / f"{name}.part"
    with part.open("wb") as file:
        np.savez(file, step=model.step, weights=model.weights, velocity=model.velocity)
        file.flush()
        os.fsync(file.fileno())
    part.replace(directory / name)


def resume(directory, world):
    """Rank 0 picks the newest checkpoint and names it to all, so that all begin alike."""
    if world.rank == 0:
        newest = max((path.name for path in directory.glob("step-*.npz")), default="")
        world.store.set("checkpoint", newest)
    name = world.store.get("checkpoint").decode()
    if not name:
        return Model()
    with np.load(directory / name) as saved:
        return Model(int(saved["step"]), saved["weights"], saved["velocity"])


def train(world, options, images, labels):
    """Train to the last epoch, or until the members change."""
    model, losses = resume(options.checkpoints, world), []
    epoch_steps = len(labels) // BATCH
    if world.rank == 0:
        at = f"epoch {model.step // epoch_steps} of {options.epochs}"
        print(f"round {world.number}: {world.size} workers go on from {at}", flush=True)
    while model.step < options.epochs * epoch_steps and not world.change:
        epoch, number = divmod(model.step, epoch_steps)
        order = np.random.default_rng(epoch).permutation(len(labels))  # the same for all
        batch = order[number * BATCH : (number + 1) * BATCH]
        mine = batch[world.rank :: world.size]  # so that any number of workers shares it out
        total = sum_over_workers(world, model.step, model.gradient(images[mine], labels[mine]))
        # All parts are in `total`, or an error has ended this world: there is no half a step, and
        # a worker that is one step ahead of another when the round ends changes nothing, since
        # the next world begins from the checkpoint.
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
    parser.add_argument("--checkpoints", type=Path, required=True, help="a directory that all see")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--pause", type=float, default=0, help="seconds per step, to watch it")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    training, test = digits()
    with rallypoint.join() as run:  # `rallypoint run` or the environment say which run, and where
        for world in run.worlds():
            with world:  # a peer's death ends this block, and the next world begins
                model = train(world, options, *training)
                if world.change:
                    continue
                # Nobody leaves before all are through: until then, a death would need everybody.
                world.barrier("trained")
                if world.rank == 0:
                    print(f"test accuracy {accuracy(model, *test):.4f}", flush=True)
                run.close("trained")


if __name__ == "__main__":
    main()
