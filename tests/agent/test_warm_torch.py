"""Warm workers with torch and numpy: seeds, data loaders, a collective and a DDP step."""

from __future__ import annotations

import json
import sys

import pytest

from tests.agent.processes import Machine

pytestmark = [
    pytest.mark.processes,
    pytest.mark.torch,
    pytest.mark.skipif(sys.platform != "linux", reason="warm starts need Linux"),
]

PROGRAM = """
import json, os, random, signal, time
was_there = "torch" in __import__("sys").modules
import numpy, torch
import torch.distributed as dist

class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return index * index

def main():
    found = {"torch": torch.rand(2).tolist(), "seed": torch.initial_seed(), "warm": was_there}
    found["numpy"], found["random"] = float(numpy.random.rand()), random.random()
    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            Squares(), batch_size=4, num_workers=2, multiprocessing_context=method
        )
        found[method] = [batch.tolist() for batch in loader]
    dist.init_process_group("gloo")
    one = torch.ones(1)
    dist.all_reduce(one)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    found["sum"], found["threads"] = one.item(), torch.get_num_threads()
    print("FOUND", json.dumps(found), flush=True)
    dist.barrier()
    if os.environ["RALLYPOINT_ROUND"] == "1":
        raise ValueError("once more")

if __name__ == "__main__":
    main()
"""


@pytest.mark.timeout(400)
def test_a_warm_worker_computes_as_a_cold_one(machine: Machine) -> None:
    pytest.importorskip("torch")
    found = {}
    for name, more in (("cold", ()), ("warm", ("--preload=numpy,torch,torch._dynamo",))):
        agent = machine.agent(
            *(name, "--nproc-per-node", "2", "--max-restarts", "1", *more),
            nnodes="1",
            program=machine.program(PROGRAM, "computes.py"),
            endpoint=f"file://{machine.directory / name}",
        )
        lines = agent.ends(0, 200).splitlines()
        told = [line.partition("FOUND ")[2] for line in lines if "FOUND " in line]
        found[name] = [json.loads(each) for each in told]
        assert len(found[name]) == 4
        assert all(each["warm"] == (name == "warm") for each in found[name])
    for each in (*found["cold"], *found["warm"]):
        assert each["fork"] == each["spawn"] == [[0, 1, 4, 9], [16, 25, 36, 49]]
        assert each["sum"] == 2
        assert each["threads"] == 1
    for kind in ("numpy", "random", "torch", "seed"):
        for name in ("cold", "warm"):
            assert len({str(each[kind]) for each in found[name]}) == 4
