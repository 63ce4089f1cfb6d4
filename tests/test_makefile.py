"""Variables of make reach the command that it prints and runs; a wrong choice is told in one line."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make(*arguments: str) -> subprocess.CompletedProcess:
    """A dry run with the environment that is active."""
    command = ["make", "-n", "VENV=", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def last_command(*arguments: str) -> str:
    done = make(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ").splitlines()[-1]


@pytest.mark.parametrize("target", ["pretrain-ctc", "finetune"])
def test_data_size_trainer_and_arguments_reach_the_command(target: str) -> None:
    given = ("DATA=fsdd", "SIZE=tiny", "TRAINER=single", "RUN=runs/mine", "ARGS=--trainer.max_epochs 3 --model.a b")
    command = last_command(target, *given)
    for part in ("conf/data/fsdd.yaml", "conf/size/tiny.yaml", "conf/trainer/single.yaml", "--run runs/mine"):
        assert f" {part}" in command
    assert command.endswith("--trainer.max_epochs 3 --model.a b")


def test_the_command_is_printed_before_it_runs() -> None:
    printed, _, executed = last_command("pretrain-ctc", "RUN=runs/mine").partition("; ")
    assert printed == f"echo '{executed}'"


def test_checkpoints_are_chosen_by_name() -> None:
    assert "--model.encoder_checkpoint 'a.ckpt'" in last_command("finetune", "CKPT=a.ckpt")
    assert "--ckpt_path a.ckpt" in last_command("pretrain-ctc", "CKPT=a.ckpt")
    assert "--checkpoint '[a.ckpt,b.ckpt]'" in last_command("evaluate", "CKPT=a.ckpt,b.ckpt")
    assert "--cuts data/fsdd/dev.jsonl.gz" in last_command("evaluate", "CKPT=a.ckpt", "DATA=fsdd", "SPLIT=dev")
    assert "--checkpoint a.ckpt" in last_command("transcribe", "CKPT=a.ckpt", "FILES=one.wav")


def test_another_llm_is_not_built_here() -> None:
    given = make("finetune", "DATA=fsdd", "LLM=/models/llama")
    assert "--model.llm /models/llama" in given.stdout
    assert "tiny_llm" not in given.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "llm").glob("*.yaml")))
def test_an_llm_of_the_configuration_is_given_as_its_file_and_not_built(name: str) -> None:
    given = make("finetune", "DATA=fsdd", f"LLM={name}")
    assert f"--config conf/llm/{name}.yaml" in given.stdout
    assert "--model.llm" not in given.stdout
    assert "tiny_llm" not in given.stdout


def test_ablations_become_overrides_with_a_run_folder_of_their_own_and_are_empty_by_default() -> None:
    command = last_command("finetune", "STRIDE=6", "LORA_R=0", "MASKING=0.125", "ARGS=--model.stride 3")
    assert "--model.stride 6 --model.lora_r 0 --model.text_masking 0.125 --model.stride 3" in command
    assert "--run runs/finetune/spoken_numbers-tiny-stride6-r0-masking0.125 " in command
    plain = last_command("finetune")
    assert "--run runs/finetune/spoken_numbers-tiny " in plain
    assert not any(option in plain for option in ("--model.stride", "--model.lora_r", "--model.text_masking"))


def test_augmentation_is_one_more_file_and_names_the_run() -> None:
    assert "conf/augment" not in last_command("pretrain-ctc")
    command = last_command("pretrain-ctc", "AUGMENT=noisy", "ARGS=--data.augmentations null")
    assert " --config conf/trainer/cpu.yaml --config conf/augment/noisy.yaml " in command
    assert command.endswith("--run runs/pretrain_ctc/spoken_numbers-tiny-noisy --data.augmentations null")
    command = last_command("finetune", "AUGMENT=noisy", "STRIDE=6")
    assert "--run runs/finetune/spoken_numbers-tiny-noisy-stride6 " in command
    assert "--model.encoder_checkpoint 'runs/pretrain_ctc/spoken_numbers-tiny-noisy/checkpoints/best.ckpt'" in command


def test_venv_names_the_programs() -> None:
    inside = ["-o", "elsewhere/installed", "VENV=elsewhere"]
    assert "; elsewhere/bin/speechllm fit" in last_command("pretrain-ctc", *inside)
    assert "; speechllm fit" in last_command("pretrain-ctc")


@pytest.mark.parametrize(
    ("name", "known"), [("DATA", "fsdd"), ("SIZE", "paper-24"), ("TRAINER", "ddp"), ("AUGMENT", "noisy")]
)
def test_an_unknown_choice_is_refused_with_those_that_exist(name: str, known: str) -> None:
    done = make("pretrain-ctc", f"{name}=nosuch")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{name}=nosuch" in line
    assert known in line


def test_own_data_needs_a_table() -> None:
    done = make("data", "DATA=table", "ROOT=data/nosuch")
    assert done.returncode == 2
    assert "TABLE=<folder or table>" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("data", ["mls", "common_voice", "voxpopuli", "librispeech"])
def test_a_published_corpus_is_prepared_from_where_it_was_unpacked(data: str) -> None:
    given = (f"DATA={data}", "CORPUS=/my corpora/x", "ROOT=data/new", "JOBS=7", "PREPARE_ARGS=--check header")
    command = shlex.split(last_command("data", *given).partition("; ")[2])
    assert (ROOT / "data_prep" / f"{data}.py").is_file()
    options = ["--corpus", "/my corpora/x", "--output", "data/new", "--jobs", "7", "--check", "header"]
    assert command == ["python", "-m", f"data_prep.{data}", *options]
    without = make("data", f"DATA={data}", "ROOT=data/new")
    assert without.returncode == 2
    assert f"DATA={data} needs CORPUS=<folder" in without.stderr


def test_a_corpus_of_one_language_is_not_asked_for_languages() -> None:
    given = ("CORPUS=/x", "ROOT=data/new", "LANGUAGES=en")
    assert "--languages" not in last_command("data", "DATA=librispeech", *given)
    assert "--languages en" in last_command("data", "DATA=mls", *given)


@pytest.mark.parametrize("data", ["mls", "common_voice", "voxpopuli"])
def test_languages_of_a_published_corpus_are_parts_of_it(data: str) -> None:
    given = (f"DATA={data}", "CORPUS=/x", "PARTS=en pl", "ROOT=data/new")
    whole = make("data", *given).stdout
    for language in ("en", "pl"):
        assert f"data_prep.{data} --corpus '/x' --output data/new/parts/{language} " in whole
        assert f"--languages {language}" in whole
    part = make("part", "PART=2", *given).stdout
    assert "--languages pl" in part
    assert "--languages en" not in part
    (array, _) = last_command("slurm-prepare", *given).partition("; ")[2].split(" && ")
    assert "--array=1-2" in shlex.split(array)


def test_a_container_runs_what_the_environment_would() -> None:
    plain = last_command("evaluate", "CKPT=a.ckpt").partition("; ")[2]
    inside = last_command("evaluate", "CKPT=a.ckpt", "CONTAINER=image.sif").partition("; ")[2]
    assert inside == f"apptainer exec --nv --bind {ROOT} --pwd {ROOT} image.sif {plain}"
    other = last_command("evaluate", "CKPT=a.ckpt", "CONTAINER=a", "CONTAINER_RUN=enter").partition("; ")[2]
    assert other == f"enter a {plain}"


# SLURM


def submission(*arguments: str) -> list[str]:
    """The words of the sbatch command that make would run."""
    return shlex.split(last_command(*arguments).partition("; ")[2].rpartition(" && ")[2])


def told(words: list[str]) -> list[str]:
    """What the job's script is told."""
    (script,) = (word for word in words if word.endswith(".sbatch"))
    assert (ROOT / script).is_file()
    return words[words.index(script) + 1 :]


@pytest.mark.parametrize("target", ["slurm-pretrain-ctc", "slurm-finetune"])
def test_a_training_job_has_one_task_a_device(target: str) -> None:
    words = submission(target, "NODES=8", "GPUS=8", "TRAINER=ddp", "CPUS=16")
    assert {"--nodes=8", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=16"} <= set(words)
    words = submission(target, "GPUS=a100:4", "TRAINER=ddp")
    assert {"--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=a100:4"} <= set(words)
    words = submission(target, "GPUS=0", "TASKS=2")
    assert {"--ntasks-per-node=2", "--cpus-per-task=1"} <= set(words)
    assert not [word for word in words if word.startswith("--gpus")]


def test_an_evaluation_has_one_task_a_device() -> None:
    words = submission("slurm-evaluate", "NODES=2", "GPUS=8", "SPLIT=dev")
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=8"} <= set(words)
    assert told(words) == ["SPLIT=dev", "VENV="]
    words = submission("slurm-evaluate", "GPUS=0", "TASKS=2")
    assert {"--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1"} <= set(words)
    assert {"--ntasks-per-node=1", "--gpus-per-node=1"} <= set(submission("slurm-evaluate"))


@pytest.mark.parametrize(("trainer", "devices"), [("cpu", "auto"), ("ddp", "auto"), ("fsdp", "auto"), ("single", None)])
def test_an_evaluation_takes_every_device_unless_one_is_asked_for(trainer: str, devices: str | None) -> None:
    words = shlex.split(last_command("evaluate", "CKPT=a.ckpt", f"TRAINER={trainer}").partition("; ")[2])
    assert (words[words.index("--devices") + 1] if "--devices" in words else None) == devices
    assert "--device" not in words


def test_partition_account_time_and_the_rest_are_options() -> None:
    given = ("GPUS=0", "PARTITION=gpu", "ACCOUNT=me", "TIME=1-00:00:00", "SBATCH_ARGS=--qos=long --partition=big")
    words = submission("slurm-pretrain-ctc", *given)
    assert words[0] == "sbatch"
    assert {"--account=me", "--time=1-00:00:00", "--qos=long"} <= set(words)
    assert (
        words.index("--partition=gpu") < words.index("--partition=big") < words.index("conf/slurm/pretrain_ctc.sbatch")
    )
    assert not [word for word in submission("slurm-pretrain-ctc", "GPUS=0") if "partition" in word or "time" in word]


def test_the_job_is_told_what_make_was_told() -> None:
    given = [
        "DATA=fsdd",
        "SIZE=tiny",
        "TRAINER=ddp",
        "LLM=a/b",
        "RUN=runs/mine",
        "CKPT=c.ckpt",
        "ARGS=--x '[1, 2]' --y it's",
    ]
    assert told(submission("slurm-finetune", "NODES=2", *given)) == sorted([*given, "VENV="])
    assert told(submission("slurm-finetune", "TRAINER=ddp")) == ["TRAINER=ddp", "VENV="]


@pytest.mark.parametrize("target", ["pretrain-ctc", "finetune", "evaluate"])
def test_the_job_starts_the_command_that_make_runs(target: str) -> None:
    given = ("DATA=fsdd", "TRAINER=single", "CKPT=a.ckpt", "ARGS=--x 'a b' --y c")
    printed = last_command("command", f"TARGET={target}", *given)
    assert printed == last_command(target, *given).partition("; ")[0]


@pytest.mark.parametrize(("target", "stage"), [("slurm-pretrain-ctc", "pretrain_ctc"), ("slurm-finetune", "finetune")])
def test_a_training_job_asks_for_the_memory_that_the_plan_says(target: str, stage: str) -> None:
    given = ("NODES=2", "GPUS=a100:8", "CPUS=12", "TRAINER=ddp", "ARGS=--data.max_seconds 20")
    planned, _, submitted = last_command(target, *given).partition("; ")[2].partition(" && ")
    words = shlex.split(planned.removeprefix("memory=$(").removesuffix(")"))
    assert words[:4] == ["speechllm", "plan", "--config", f"conf/{stage}.yaml"]
    options = ["--data.max_seconds 20", "--trainer.devices 8", "--trainer.num_nodes 2", "--cpus_per_task 12"]
    assert all(option in " ".join(words) for option in options)
    assert words[-1] == "--host_memory"
    assert "${memory:+--mem=${memory}}" in shlex.split(submitted)
    words = submission(target, *given, "MEM=100G")
    assert words[0] == "sbatch"
    assert [word for word in words if word.startswith(("--mem", "MEM"))] == ["--mem=100G"]


@pytest.mark.parametrize("there", [True, False])
def test_stage_two_is_submitted_before_its_llm_is_made(tmp_path: Path, llm_folder: Path, there: bool) -> None:
    """The job makes it; until then nobody knows what memory it takes."""
    for name in ("Makefile", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs, submitted = tmp_path / "bin", tmp_path / "submitted"
    programs.mkdir()
    (programs / "sbatch").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >'{submitted}'\n")
    (programs / "sbatch").chmod(0o755)
    (tmp_path / "data").mkdir()
    if there:
        (tmp_path / "data" / "llm").symlink_to(llm_folder)
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    given = ("VENV=", "ROOT=data", "GPUS=1", "TRAINER=ddp")
    done = subprocess.run(
        ["make", "slurm-finetune", *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = submitted.read_text().splitlines()
    assert "conf/slurm/finetune.sbatch" in words
    assert "" not in words
    assert any(word.startswith("--mem=") for word in words) == there
    told = [line for line in done.stderr.splitlines() if "MEM=" in line]
    assert len(told) == (not there)
    assert all("data/llm" in line for line in told)


def test_an_llm_of_the_hub_is_fetched_before_a_job_starts_its_tasks() -> None:
    for llm, option in (("org/name", "--model.llm org/name"), ("bloom-560m", "--config conf/llm/bloom-560m.yaml")):
        printed = make("needs", "TARGET=finetune", f"LLM={llm}").stdout
        assert printed.count("speechllm fetch --config conf/finetune.yaml") == 2  # once to be read, once to be run
        assert option in printed
    for given in (("TARGET=finetune",), ("TARGET=pretrain-ctc", "LLM=org/name")):
        assert "speechllm fetch" not in make("needs", *given).stdout


def test_jobs_of_one_run_wait_for_each_other() -> None:
    words = submission("slurm-pretrain-ctc", "GPUS=0", "DATA=fsdd")
    assert {"--job-name=runs/pretrain_ctc/fsdd-tiny", "--dependency=singleton"} <= set(words)
    assert "--job-name=runs/mine" in submission("slurm-finetune", "GPUS=0", "RUN=runs/mine")


def test_gpus_that_the_trainer_would_not_use_are_refused() -> None:
    done = make("slurm-pretrain-ctc", "GPUS=8", "TRAINER=cpu")
    assert done.returncode == 2
    assert "GPUS=0 TASKS=" in done.stderr


def test_parts_are_prepared_in_an_array_and_joined_after_it() -> None:
    command = last_command("slurm-prepare", "DATA=table", "TABLE=t", "PARTS=en de fr", "JOBS=16").partition("; ")[2]
    array, join = command.split(" && ")
    assert {"--array=1-3", "--cpus-per-task=16", "--output=runs/slurm/%A_%a.out"} <= set(shlex.split(array))
    assert "--array" not in join
    assert "--dependency=afterok:${parts%;*}" in shlex.split(join)
    assert "'PARTS=en de fr'" in array
    assert "'PARTS=en de fr'" in join
    alone = submission("slurm-prepare", "DATA=fsdd")
    assert not [word for word in alone if word.startswith(("--array", "--dependency"))]


def test_training_cuts_are_packed_alone_or_in_an_array() -> None:
    assert last_command("shar", "DATA=fsdd", "CODEC=flac", "JOBS=3").endswith(
        "data_prep.shar --manifest data/fsdd/train.jsonl.gz --output data/fsdd/shar/train --codec flac --jobs 3"
    )
    array = submission("slurm-shar", "DATA=fsdd", "ARRAY=0-31", "JOBS=16")
    assert {"--array=0-31", "--cpus-per-task=16", "conf/slurm/shar.sbatch", "DATA=fsdd"} <= set(array)


def test_a_part_is_a_corpus_by_itself() -> None:
    part = make("part", "PART=2", "PARTS=en de", "DATA=table", "TABLE=t", "ROOT=data/new").stdout
    assert "data_prep.table --table 't/de' --output data/new/parts/de" in part
    assert "'t/en'" not in part
    whole = make("data", "PARTS=en de", "DATA=spoken_numbers", "ROOT=data/new").stdout
    for language in ("en", "de"):
        assert f"--output data/new/parts/{language} " in whole
        assert f"--languages {language}" in whole
    done = make("data", "PARTS=en de", "DATA=fsdd", "ROOT=data/new")
    assert done.returncode == 2
    assert "DATA=fsdd cannot be prepared in parts" in done.stderr


def test_batch_scripts_parse_and_their_logs_have_a_folder() -> None:
    scripts = sorted((ROOT / "conf" / "slurm").iterdir())
    assert [path.name for path in scripts if path.suffix == ".sbatch"] == [
        *("evaluate.sbatch", "finetune.sbatch", "prepare.sbatch", "pretrain_ctc.sbatch", "shar.sbatch")
    ]
    for script in (*scripts, ROOT / "tests" / "slurm" / "cluster.sh", ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", script], check=True)
    for script in scripts:
        if script.suffix == ".sbatch":
            assert (
                "#SBATCH --output=runs/slurm/%j.out\n#SBATCH --open-mode=append\n#SBATCH --requeue\n"
                in script.read_text()
            )
    for target in ("prepare", "pretrain-ctc", "finetune", "evaluate"):
        assert make(f"slurm-{target}", "GPUS=0", "-B").stdout.startswith("mkdir -p runs/slurm\n")


@pytest.mark.parametrize(("trainer", "preloaded"), [("cpu", True), ("single", False)])
def test_training_on_a_cpu_has_an_allocator_of_its_own_where_it_is_installed(trainer, preloaded, tmp_path) -> None:
    """`env` runs in place of the program; what is preloaded here is empty, which the loader ignores."""
    library = tmp_path / "lib" / "python3.11" / "site-packages" / "cmeel.prefix" / "lib" / "libmimalloc.so"
    library.parent.mkdir(parents=True)
    library.touch()
    given = (f"VENV={tmp_path}", f"TRAINER={trainer}", "NEEDS_pretrain-ctc=", "SPEECHLLM=env; true")
    done = subprocess.run(["make", "pretrain-ctc", *given], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (f"LD_PRELOAD={library}" in done.stdout.splitlines()) == preloaded
