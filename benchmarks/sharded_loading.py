"""Host memory of loading an LLM under FSDP: one rank reads it, the others receive their shards.

    python benchmarks/sharded_loading.py

Makes a random LLaMA of more than a billion bf16 parameters, loads it on ranks over gloo and shards it as training
does. Prints the highest anonymous memory of each rank above what it had before, in copies of the model (file pages
that the kernel may drop are not counted). Fails above 1.3 copies in total plus what the shards need, or when a
shard differs from the file.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from machine import describe
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from speechllm_pl.models.llm import decoder_layers, empty_llm, load_llm
from speechllm_pl.training.sharding import shard

BAR = 1.3  # copies, over all ranks, besides the shards


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=22, help="of width 2048: 22 make 1.2 billion parameters")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the model's files; default is a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size = make(folder, args.layers)
        print(f"{describe(torch.get_num_threads())}; {size / 2e9:.2f} billion parameters, {size / 1e9:.2f} GB in bf16")
        mp.spawn(load, (args.ranks, folder), nprocs=args.ranks)
        peaks = [int((folder / f"peak-{rank}").read_text()) / size for rank in range(args.ranks)]
    total = sum(peaks)
    print(f"peak of each rank: {', '.join(f'{peak:.2f}' for peak in peaks)} copies; together {total:.2f}")
    print(f"without the shards themselves (one copy in all): {total - 1:.2f} copies, bar {BAR}")
    sys.exit(total - 1 > BAR)


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


def load(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    before, stop = anonymous_bytes(), threading.Event()
    highest = [before]

    def watch() -> None:
        while not stop.is_set():
            highest[0] = max(highest[0], anonymous_bytes())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    read = load_llm if rank == 0 else empty_llm
    llm = read(str(folder), torch.bfloat16)
    shard(llm, decoder_layers(llm), mesh)
    stop.set()
    thread.join()
    (folder / f"peak-{rank}").write_text(str(highest[0] - before))
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        for name in list(file.keys())[::20]:
            parameter = llm.get_parameter(name)
            assert isinstance(parameter, DTensor)
            assert torch.equal(parameter.full_tensor(), file.get_tensor(name)), name
    dist.destroy_process_group()


def anonymous_bytes() -> int:
    """Memory of this process that only it has: what must be there for it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
