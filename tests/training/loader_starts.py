"""One of two ranks of sharded training, which starts the loader's processes anew at every step.

python tests/training/loader_starts.py RANK RENDEZVOUS_FILE CORPUS STARTS
"""

import sys
import time
from pathlib import Path

import torch

from speechllm_pl.data.buckets import Buckets
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import EpochBatches
from speechllm_pl.data.loader import loader
from speechllm_pl.data.manifest import read_manifest


def main() -> None:
    import torch.distributed as dist  # not at the top, which each loader process imports again
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, starts = int(sys.argv[1]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(8)))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    cuts = read_manifest(Path(sys.argv[3], "train.jsonl.gz"))
    plan = list(EpochBatches(Buckets(cuts.durations, 2.0, 2)))
    seconds = []
    for number in range(starts):
        model(torch.randn(4, 64)).square().mean().backward()
        optimizer.step()  # threads of autograd and gloo have not come to rest when processes are started
        optimizer.zero_grad()
        started = time.perf_counter()
        batches = loader(SpeechDataset(cuts), plan, 2)
        assert len(next(iter(batches)).ids) == len(plan[0].indices)
        seconds.append(time.perf_counter() - started)
        if (number + 1) % 50 == 0:
            print(f"{number + 1} starts", file=sys.stderr, flush=True)
    seconds.sort()
    print(f"{starts} starts; until the first batch {seconds[starts // 2]:.2f} s (median), at most {seconds[-1]:.2f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
