"""Host memory of loading an LLM on several ranks: one rank reads it, the others are sent what they hold.

    python benchmarks/sharded_loading.py

Makes a random LLaMA of more than a billion bf16 parameters and loads it on ranks over gloo as training does: under
FSDP, under DDP, and under DDP with every rank reading, as it must with NF4. Prints of each rank, in copies of the
model, the highest memory of its own above what it had before, and how much of the model's files it mapped. (A rank on a
CPU holds its copy in its own memory; on a GPU it is the GPU's.) Fails when FSDP takes more than 1.3 copies in total
plus what the shards need, when under either more than one rank reads, or when a weight differs from the file.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from machine import describe
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from speechllm_pl.models.llm import decoder_layers, empty_llm, load_llm
from speechllm_pl.training.sharding import replicate, shard

BAR = 1.3  # copies, over all ranks, besides the shards

Way = Literal["FSDP", "DDP", "DDP, every rank reads"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=22, help="of width 2048: 22 make 1.2 billion parameters")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the model's files; default is a temporary folder")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size = make(folder, args.layers)
        print(f"{describe(torch.get_num_threads())}; {size / 2e9:.2f} billion parameters, {size / 1e9:.2f} GB in bf16")
        for way in ("FSDP", "DDP", "DDP, every rank reads"):
            (folder / "rendezvous").unlink(missing_ok=True)
            mp.spawn(load, (args.ranks, folder, way), nprocs=args.ranks)
            peaks = [[int(n) / size for n in (folder / f"peak-{r}").read_text().split()] for r in range(args.ranks)]
            own, files = zip(*peaks, strict=True)
            print(f"{way}: own memory {copies(own)} copies at the peak; of the files {copies(files)} copies mapped")
            failed |= way == "FSDP" and sum(own) - 1 > BAR
            failed |= way != "DDP, every rank reads" and any(read > 0.05 for read in files[1:])
    sys.exit(failed)


def copies(numbers: tuple[float, ...]) -> str:
    return " and ".join(f"{number:.2f}" for number in numbers)


def make(folder: Path, layers: int) -> int:
    """Write the model, → bytes of its parameters."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    llm = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    llm.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in llm.parameters())


def load(rank: int, ranks: int, folder: Path, way: Way) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    before, stop = memory(), threading.Event()
    highest = [0, 0]

    def watch() -> None:
        while not stop.is_set():
            highest[:] = [max(most, now - then) for most, now, then in zip(highest, memory(), before, strict=True)]
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    read = load_llm if rank == 0 or way == "DDP, every rank reads" else empty_llm
    llm = read(str(folder), torch.bfloat16)
    if way == "FSDP":
        shard(llm, decoder_layers(llm), mesh)
    elif way == "DDP":
        replicate(llm, torch.device("cpu"))
    else:
        sum(p.sum() for p in llm.parameters())  # as the first step would: mapped bytes are read when they are used
    stop.set()
    thread.join()
    (folder / f"peak-{rank}").write_text(" ".join(map(str, highest)))
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        for name in list(file.keys())[::20]:
            parameter = llm.get_parameter(name)
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            assert torch.equal(whole, file.get_tensor(name)), name
    dist.destroy_process_group()


def memory() -> tuple[int, int]:
    """Bytes that only this process has, which must be there for it, and bytes of files that it has mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    own, files = (int(sizes[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssFile"))
    return own, files


if __name__ == "__main__":
    main()
