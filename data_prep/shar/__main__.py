"""A manifest's cuts → Lhotse Shar: audio and cuts in shards of a thousand, read in the order of the disk.

    python -m data_prep.shar --manifest data/mls/train.jsonl.gz --output data/mls/shar/train --codec opus --jobs 16
    sbatch --array=0-31 ... python -m data_prep.shar ...          # task i of n writes shards i, i + n, ...
    python -m data_prep.shar --verify data/mls/shar/train         # reads every byte again

Audio becomes 16 kHz mono, as Opus (30 kbit/s, 13 GB per 1,000 h; a core encodes 34 h of speech an hour, so that all of
MLS takes some 1,500 core-hours) or FLAC (lossless, four and a half times the size, nearly a hundred times as fast). A
recording that is that already is taken as it is: its bytes are copied.

A shard appears when it is complete, and is left alone from then on, as long as its lines of the manifest and settings
stay the same: after an interruption the same command goes on. Whoever completes the last shard verifies all and writes
the index (`speechllm_pl/storage/shar_index.py`), with which training opens the folder as it opens a manifest.
`CutSet.from_shar` reads it too. A cut that cannot be read becomes a line of cuts.quarantine.tsv.
"""

import argparse
import logging
import os
from pathlib import Path

from data_prep.machinery.command_line import add_jobs, at_least_one, program_parser, run
from data_prep.shar.encoding import CODECS
from data_prep.shar.export import Settings, export
from data_prep.shar.verification import finish
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import shar_index as shar


def _of_array(name: str) -> int | None:
    """Variable of SLURM about the job array that this is a task of."""
    value = os.environ.get(f"SLURM_ARRAY_TASK_{name}")
    return int(value) if value else None


def _tasks(index: int | None, count: int | None) -> tuple[int, int]:
    """Decide which task of how many this is: as told, else as SLURM has it, else the only one.

    Raises:
        UserError: one is told without the other, or there is no such task.
    """
    if (index is None) != (count is None):
        raise UserError("give --shard-index and --shard-count together")
    if index is None or count is None:
        count = _of_array("COUNT") or 1
        index = (_of_array("ID") or 0) - (_of_array("MIN") or 0) if count > 1 else 0
    if not 0 <= index < count:
        raise UserError(f"task {index} of {count}: number tasks from 0 in --shard-index and --shard-count")
    return index, count


def arguments() -> argparse.ArgumentParser:
    parser = program_parser("shar", __doc__)
    parser.add_argument("--manifest", type=Path, help="JSONL of cuts, plain or gzipped.")
    parser.add_argument("--output", type=Path, help="Folder for the shards, for example data/mls/shar/train.")
    parser.add_argument("--verify", type=Path, metavar="FOLDER", help="Only read all shards of FOLDER again.")
    codec = "Codec of the audio (default: %(default)s)."
    parser.add_argument("--codec", choices=sorted(CODECS), default="opus", help=codec)
    size = "Number of cuts in a shard (default: %(default)s)."
    parser.add_argument("--shard-size", type=at_least_one, default=1000, help=size)
    add_jobs(parser)
    parser.add_argument("--shard-index", type=int, help="Number of this task, from 0 (default: SLURM's array task).")
    parser.add_argument("--shard-count", type=int, help="Number of tasks that share the work (default: SLURM's).")
    parser.add_argument("--strict", action="store_true", help="Stop at the first cut that cannot be read.")
    parser.add_argument("--retry", action="store_true", help="Make shards again that have quarantined cuts.")
    commands = (
        "Run the shell commands and open the addresses that the manifest names instead of files. Only for a manifest"
        " that you trust."
    )
    parser.add_argument("--allow-command-sources", action="store_true", help=commands)
    return parser


def main() -> None:
    args = arguments().parse_args()
    logging.getLogger("lhotse").setLevel(logging.ERROR)
    if args.verify:
        with shar.locked(args.verify):
            finish(args.verify, args.jobs)
        return
    if not args.manifest or not args.output:
        raise UserError("give --manifest and --output, or --verify")
    task, tasks = _tasks(args.shard_index, args.shard_count)
    settings = Settings(args.codec, args.shard_size, args.allow_command_sources)
    work = {"jobs": args.jobs, "task": task, "tasks": tasks}
    export(args.manifest, args.output, settings, **work, strict=args.strict, retry=args.retry)


if __name__ == "__main__":
    run(main)
