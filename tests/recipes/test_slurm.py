"""Jobs are submitted with the tasks, devices and memory that they need, and run what was asked for without SLURM."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import last_words, lines

ROOT = Path(__file__).parents[2]
STAGES = ["pretrain-ctc", "finetune"]


def submission(speechllm, target: str, *given: str) -> list[str]:
    """The words of the sbatch command that would run."""
    (line,) = lines(speechllm, target, "--slurm", *given)
    assert line.startswith("mkdir -p runs/slurm && ")
    return shlex.split(line.rpartition(" && ")[2])


def told(words: list[str]) -> list[str]:
    """What the job's script is told."""
    return words[words.index("conf/slurm/job.sbatch") + 1 :]


@pytest.mark.parametrize("target", STAGES)
def test_a_training_job_has_one_task_a_device(speechllm, target: str) -> None:
    words = submission(speechllm, target, "--nodes=8", "--gpus=8", "--trainer=ddp", "--cpus=16")
    assert {"--nodes=8", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=16"} <= set(words)
    words = submission(speechllm, target, "--gpus=a100:4", "--trainer=ddp")
    assert {"--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=a100:4"} <= set(words)
    words = submission(speechllm, target, "--gpus=0", "--tasks=2")
    assert {"--ntasks-per-node=2", "--cpus-per-task=1"} <= set(words)
    assert not [word for word in words if word.startswith("--gpus")]


def test_an_evaluation_has_one_task_a_device(speechllm) -> None:
    words = submission(speechllm, "evaluate", "--nodes=2", "--gpus=8", "--split=dev")
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=8"} <= set(words)
    assert told(words) == ["speechllm", "evaluate", "--split=dev", "--"]
    words = submission(speechllm, "evaluate", "--gpus=0", "--tasks=2")
    assert {"--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1"} <= set(words)
    assert {"--ntasks-per-node=1", "--gpus-per-node=1"} <= set(submission(speechllm, "evaluate"))


def test_jobs_that_keep_what_they_have_done_are_signalled_before_the_time_limit(speechllm) -> None:
    given = {"pretrain-ctc": ["--gpus=0"], "finetune": ["--gpus=0"], "prepare": [], "shar": []}
    for target, options in given.items():
        assert "--signal=SIGUSR1@90" in submission(speechllm, target, *options)
    assert not [word for word in submission(speechllm, "evaluate") if word.startswith("--signal")]
    words = submission(speechllm, "finetune", "--gpus=0", "--sbatch_args=--signal=SIGUSR1@600")
    assert words.index("--signal=SIGUSR1@90") < words.index("--signal=SIGUSR1@600")


def test_partition_account_time_and_the_rest_are_options(speechllm) -> None:
    given = ("--gpus=0", "--partition=gpu", "--account=me", "--time=1-00:00:00")
    words = submission(speechllm, "pretrain-ctc", *given, "--sbatch_args=--qos=long --partition=big --comment='a b'")
    assert words[0] == "sbatch"
    assert {"--account=me", "--time=1-00:00:00", "--qos=long", "--comment=a b"} <= set(words)
    assert words.index("--partition=gpu") < words.index("--partition=big") < words.index("conf/slurm/job.sbatch")
    plain = submission(speechllm, "pretrain-ctc", "--gpus=0")
    assert not [word for word in plain if "partition" in word or "time" in word]


def test_the_job_is_told_what_this_command_was_told(speechllm) -> None:
    own = ["--data=fsdd", "--trainer=ddp", "--llm=a/b", "--ckpt=c.ckpt"]
    overrides = ["--x", "[1, 2]", "--y", "it's"]
    words = submission(speechllm, "finetune", "--nodes=2", *own, "--run=runs/mine", "--", *overrides)
    assert told(words)[:2] == ["speechllm", "finetune"]
    assert sorted(told(words)[2:6]) == sorted(own)
    assert told(words)[6:] == ["--run", "runs/mine", "--", *overrides]
    words = told(submission(speechllm, "finetune", "--trainer=ddp", "--program=enter image speechllm"))
    run = ["--run", "runs/finetune/spoken_numbers-tiny"]
    assert words == ["enter image speechllm", "finetune", "--trainer=ddp", *run, "--"]


@pytest.mark.parametrize("target", [*STAGES, "evaluate"])
def test_the_job_starts_the_command_that_runs_without_slurm(speechllm, target: str) -> None:
    given = ("--data=fsdd", "--trainer=single", "--ckpt=a.ckpt", "--", "--x", "a b", "--y", "c")
    _, *job = told(submission(speechllm, target, *given))
    assert last_words(speechllm, *job) == last_words(speechllm, target, *given)


@pytest.mark.parametrize(("target", "stage"), [("pretrain-ctc", "pretrain_ctc"), ("finetune", "finetune")])
def test_a_training_job_asks_for_the_memory_that_the_plan_says(speechllm, target: str, stage: str) -> None:
    given = ["--nodes=2", "--gpus=a100:8", "--cpus=12", "--trainer=ddp"]
    overrides = ["--", "--data.max_seconds", "20"]
    (line,) = lines(speechllm, target, "--slurm", *given, *overrides)
    _, planned, submitted = line.split(" && ")
    words = shlex.split(planned.removeprefix("memory=$(").removesuffix(")"))
    assert words[:4] == ["speechllm", "plan", "--config", f"conf/{stage}.yaml"]
    options = ["--data.max_seconds 20", "--trainer.devices 8", "--trainer.num_nodes 2", "--cpus_per_task 12"]
    assert all(option in " ".join(words) for option in options)
    assert words[-1] == "--host_memory"
    assert "${memory:+--mem=${memory}}" in shlex.split(submitted)
    words = submission(speechllm, target, *given, "--mem=100G", *overrides)
    assert words[0] == "sbatch"
    assert [word for word in words if word.startswith("--mem")] == ["--mem=100G"]


@pytest.mark.parametrize(
    ("given", "device"),
    [
        (["--gpus=8", "--nodes=2"], "--trainer.accelerator cuda --data.num_workers auto --trainer.devices 8"),
        (["--gpus=0", "--tasks=3"], "--trainer.accelerator cpu --data.num_workers 0 --trainer.devices 3"),
    ],
)
def test_an_evaluation_asks_for_the_memory_that_the_plan_of_the_run_says(
    speechllm, tmp_path: Path, given: list[str], device: str
) -> None:
    checkpoints = [tmp_path / stage / "checkpoints" / "best.ckpt" for stage in ("one", "two")]
    ckpt = f"--ckpt={','.join(map(str, checkpoints))}"
    assert not [word for word in submission(speechllm, "evaluate", ckpt, *given) if "mem" in word]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.yaml").touch()
    (line,) = lines(speechllm, "evaluate", "--slurm", ckpt, *given)
    _, planned, submitted = line.split(" && ")
    planned = planned.removeprefix("memory=$(").removesuffix(" || true)")
    assert planned.startswith(f"speechllm plan --config {tmp_path / 'two' / 'config.yaml'} --evaluation {device} ")
    assert planned.endswith(" --host_memory")
    assert "${memory:+--mem=${memory}}" in shlex.split(submitted)
    words = submission(speechllm, "evaluate", ckpt, *given, "--mem=100G")
    assert [word for word in words if "mem" in word] == ["--mem=100G"]


@pytest.mark.parametrize("there", [True, False])
def test_stage_two_is_submitted_before_its_llm_is_made(tmp_path: Path, llm_folder: Path, there: bool) -> None:
    """The job makes it; until then nobody knows what memory it takes."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    programs, submitted = tmp_path / "bin", tmp_path / "submitted"
    programs.mkdir()
    (programs / "sbatch").write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >'{submitted}'\n")
    (programs / "sbatch").chmod(0o755)
    (tmp_path / "data").mkdir()
    if there:
        (tmp_path / "data" / "llm").symlink_to(llm_folder)
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["speechllm", "run", "finetune", "--slurm", "--root", "data", "--gpus", "1", "--trainer", "ddp"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = submitted.read_text().splitlines()
    assert "conf/slurm/job.sbatch" in words
    assert "" not in words
    assert any(word.startswith("--mem=") for word in words) == there
    notes = [line for line in done.stderr.splitlines() if "MEM=" in line]
    assert len(notes) == (not there)
    assert all("data/llm" in line for line in notes)
    assert (tmp_path / "runs" / "slurm").is_dir()


def test_an_encoder_of_the_hub_is_fetched_before_a_job_starts_its_tasks(
    speechllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHLLM_MODELS", str(tmp_path))

    def fetched(*given: str) -> list[str]:
        return [line for line in lines(speechllm, *given) if " fetch " in line]

    for target in ("pretrain-ctc", "finetune"):
        (line,) = fetched(target, "--only_needs", "--encoder=org/name")
        assert line.startswith(f"speechllm fetch --config conf/{target.replace('-', '_')}.yaml ")
        assert "--model.encoder.name org/name" in line
        assert fetched(target, "--only_needs", "--encoder=whisper-tiny-en")
        assert not fetched(target, "--encoder=org/name")
        assert fetched(target, "--encoder=org/name", "--trainer=fsdp")
    (tmp_path / "whisper-tiny-en").mkdir()
    (tmp_path / "whisper-tiny-en" / "config.json").touch()
    assert not fetched("pretrain-ctc", "--only_needs", "--encoder=whisper-tiny-en")
    assert not fetched("pretrain-ctc", "--only_needs", f"--encoder={tmp_path / 'whisper-tiny-en'}")


def test_an_llm_of_the_hub_is_fetched_before_a_job_starts_its_tasks(speechllm) -> None:
    for llm, option in (("org/name", "--model.llm org/name"), ("bloom-560m", "--config conf/llm/bloom-560m.yaml")):
        (fetched,) = [
            line for line in lines(speechllm, "finetune", "--only_needs", f"--llm={llm}") if " fetch " in line
        ]
        assert fetched.startswith("speechllm fetch --config conf/finetune.yaml ")
        assert option in fetched
    for given in (("finetune",), ("pretrain-ctc", "--llm=org/name")):
        assert not [line for line in lines(speechllm, *given, "--only_needs") if " fetch " in line]
    assert not [line for line in lines(speechllm, "finetune", "--llm=org/name") if " fetch " in line]


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_an_llm_of_the_hub_is_fetched_before_ranks_wait_for_the_first_one_to_read_it(speechllm, trainer: str) -> None:
    printed = lines(speechllm, "finetune", "--llm=org/name", f"--trainer={trainer}")
    assert [" fetch " in line for line in printed[-2:]] == [True, False]


def test_jobs_of_one_run_wait_for_each_other(speechllm) -> None:
    words = submission(speechllm, "pretrain-ctc", "--gpus=0", "--data=fsdd")
    assert {"--job-name=runs/pretrain_ctc/fsdd-tiny", "--dependency=singleton"} <= set(words)
    assert "--job-name=runs/mine" in submission(speechllm, "finetune", "--gpus=0", "--run=runs/mine")


def test_the_names_that_a_user_chose_stay_as_they_are(speechllm) -> None:
    given = ("--trainer=ddp", "--run=runs/MEMORY-test", "--account=afterok:PARTS")
    (line,) = lines(speechllm, "finetune", "--slurm", *given)
    words = shlex.split(line.rpartition(" && ")[2])
    assert {"--job-name=runs/MEMORY-test", "${memory:+--mem=${memory}}"} <= set(words)
    assert told(words)[-3:] == ["--run", "runs/MEMORY-test", "--"]
    given = ("--data=table", "--table=t", "--parts=en de", "--program=afterok:PARTS speechllm")
    (line,) = lines(speechllm, "prepare", "--slurm", *given, "--account=afterok:PARTS")
    words = shlex.split(line.rpartition(" && ")[2])
    assert {"--dependency=afterok:${parts%;*}", "--account=afterok:PARTS"} <= set(words)


def test_the_tasks_of_a_job_run_a_line_that_was_found_once(tmp_path: Path) -> None:
    """Programs that stand for srun and speechllm note what they are started with."""
    path = tmp_path / "my (own) programs"
    path.mkdir()
    (path / "srun").write_text(
        "#!/bin/sh\nfor word; do case $word in --ntasks=1) one=1 ;; esac; done\n"
        'while [ "${1#--}" != "$1" ]; do shift; done\n'
        f'echo "${{one:-2}} $1" >>"{tmp_path}/tasks"\nexec "$@"\n'
    )
    (path / "speechllm").write_text(
        f"#!/bin/sh\nprintf '<%s>' \"$@\" >>'{tmp_path}/started'; echo >>'{tmp_path}/started'\n"
        f'echo "${{HF_HUB_OFFLINE:-0}}" >>"{tmp_path}/offline"\n'
        'case "$*" in *--only_line*) echo \'env STARTED_BY=line speechllm fit "a b"\' ;; esac\n'
    )
    for program in path.iterdir():
        program.chmod(0o755)
    of_slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_JOB_NUM_NODES": "3",
    }
    script, program = ROOT / "conf" / "slurm" / "job.sbatch", shlex.quote(f"{path}/speechllm")
    given = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run(
        ["bash", script, program, "finetune", "--", "--x", "a b"],
        env={**given, **of_slurm, "PATH": f"{path}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    made, found, run = (tmp_path / "started").read_text().splitlines()
    assert made == "<run><finetune><--only_needs><--><--x><a b>"
    assert found.startswith(f"<run><finetune><--only_line><--program><'{path}/speechllm'><--><--x><a b>")
    assert found.endswith("<--trainer.devices><2><--trainer.num_nodes><3>")
    assert run == "<fit><a b>"
    once = f"1 {path / 'speechllm'}"  # no shell stands between srun and the program
    assert (tmp_path / "tasks").read_text().splitlines() == [once, once, "2 env"]
    fetching, *later = (tmp_path / "offline").read_text().split()
    assert fetching == "0"
    assert set(later) == {"1"}  # what was fetched is in the cache


def test_gpus_that_the_trainer_would_not_use_are_refused(speechllm) -> None:
    message = speechllm("run", "pretrain-ctc", "--slurm", "--gpus=8", "--trainer=cpu").error()
    assert "GPUS=0 TASKS=" in message


def test_what_is_no_job_is_refused(speechllm) -> None:
    assert "pretrain-ctc, finetune" in speechllm("run", "demo", "--slurm").error()


def test_parts_are_prepared_in_an_array_and_joined_after_it(speechllm) -> None:
    given = ("--data=table", "--table=t", "--parts=en de fr", "--jobs=16")
    (line,) = lines(speechllm, "prepare", "--slurm", *given)
    _, array, join = line.split(" && ")
    array = array.removeprefix("parts=$(").removesuffix(")")
    assert {"--parsable", "--array=1-3", "--cpus-per-task=16", "--output=runs/slurm/%A_%a.out"} <= set(
        shlex.split(array)
    )
    assert "--array" not in join
    assert "--dependency=afterok:${parts%;*}" in shlex.split(join)
    for job, target in ((array, "data"), (join, "prepare")):
        assert told(shlex.split(job))[:2] == ["speechllm", target]
        assert "--parts=en de fr" in told(shlex.split(job))
    alone = submission(speechllm, "prepare", "--data=fsdd")
    assert not [word for word in alone if word.startswith(("--array", "--dependency"))]


def test_training_cuts_are_packed_in_an_array(speechllm) -> None:
    array = submission(speechllm, "shar", "--data=fsdd", "--array=0-31", "--jobs=16")
    assert {"--array=0-31", "--cpus-per-task=16", "--data=fsdd", "--jobs=16"} <= set(array)


def test_the_batch_script_parses_and_its_log_has_a_folder() -> None:
    (script,) = (ROOT / "conf" / "slurm").iterdir()
    for file in (script, ROOT / "tests" / "slurm" / "cluster.sh", ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", file], check=True)
    header = "#SBATCH --output=runs/slurm/%j.out\n#SBATCH --open-mode=append\n#SBATCH --requeue\n"
    assert header in script.read_text()
