"""A torch DDP worker that trains on real data until it may end.

It is examples/train_ddp.py without a fixed number of epochs, so that a test decides how long a job
lasts, however slow the machine is: it ends once FOLDER/end exists, for all ranks in one epoch. It
says who it is before it imports torch, and that it has made the first step of its world.

    steady_worker.py FOLDER
"""

import os
import runpy
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_ddp.py"


def main() -> None:
    folder = Path(sys.argv[1])
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    print(f"worker {rank} of {size} store {store} pid {os.getpid()}", flush=True)

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    example = runpy.run_path(str(EXAMPLE))
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    training, _, _ = example["digits"]()
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    sampler = DistributedSampler(training)
    loader = DataLoader(training, batch_size=max(1, 240 // int(size)), sampler=sampler)
    checkpoint = folder / "steady.pt"
    epoch = example["resume"](checkpoint, model, optimizer)
    has_stepped, is_over = False, torch.zeros(1)
    while not is_over.item():
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if not has_stepped:
                print(f"stepped {rank} of {size} from epoch {epoch}", flush=True)
                has_stepped = True
        epoch += 1
        is_over[0] = rank == "0" and (folder / "end").exists()
        dist.broadcast(is_over, 0)
        if rank == "0":
            example["save"](checkpoint, epoch, model, optimizer)
            print(f"epoch {epoch} is over: loss {loss.item():.4f}", flush=True)
        time.sleep(0.05)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
