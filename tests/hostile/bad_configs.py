"""Configurations in YAML of any kind: through `speechllm fit`, whose data are not there."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from bench import Bench
from hypothesis import strategies as st
from jail import Ended
from odd_values import LEAVES, VALUES, WRAPPINGS, Wrapping, wrapped
from trials import CANARY, Trial

CONF = Path(__file__).parents[2] / "conf"
KEYS = (
    ("model",),
    ("trainer",),
    ("data",),
    ("run",),
    ("seed_everything",),
    ("unknown",),
    ("model", "class_path"),
    ("model", "init_args"),
    *[
        ("model", "init_args", name)
        for name in ("encoder", "optimizer", "schedule", "tokenizer", "unknown", "spec_augment")
    ],
    *[("model", "init_args", "encoder", name) for name in ("dim", "num_blocks", "num_heads", "dropout", "unknown")],
    *[("trainer", name) for name in ("max_epochs", "precision", "gradient_clip_val", "callbacks", "logger", "plugins")],
    *[("trainer", name) for name in ("profiler", "strategy", "val_check_interval", "unknown")],
    *[("data", name) for name in ("max_duration", "num_buckets", "num_workers", "train", "augmentations", "unknown")],
)
"""Of a configuration, where something else may stand."""

RUN = f"touch {CANARY}"
EXECUTES: tuple[Any, ...] = (
    {"class_path": "subprocess.Popen", "init_args": {"args": RUN, "shell": True}},
    {"class_path": "os.system", "init_args": {"command": RUN}},
    [{"class_path": "subprocess.Popen", "init_args": {"args": RUN, "shell": True}}],
    "subprocess.getoutput",
)
NESTED = 3000


def _bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


TEXTS = {
    "explodes": st.builds(_bomb, st.integers(5, 12), st.integers(5, 20)),
    "nested": st.sampled_from(
        ["[" * NESTED, "a: " + "[" * NESTED + "]" * NESTED, "{a: " * NESTED + "1" + "}" * NESTED]
    ),
    "executes": st.sampled_from(
        [
            f"run: !!python/object/apply:os.system ['{RUN}']",
            f"trainer: !!python/object/new:subprocess.Popen [{{args: {RUN}, shell: true}}]",
            "run: !!python/name:os.system",
        ]
    ),
    "syntax": st.one_of(
        st.sampled_from(
            [
                "",
                "---\n---\n",
                "a: &a [*a]",
                "run: &a {b: *a}",
                "trainer: *nowhere",
                "trainer:\n\tmax_epochs: 1",
                "run: 1\nrun: 2",
                "? [a]: b\n: c",
                "[1, 2]",
                "7",
                "run: !!binary '==='",
                "run: 9999-99-99",
                "trainer: {<<: 7}",
                "run: !unknown x",
                "%YAML 9.9\n---\nrun: x",
                "'",
            ]
        ),
        st.text(max_size=20),
    ),
}


class Config(NamedTuple):
    kind: str
    text: str
    keys: tuple[str, ...]  # one of which, or the file, is to be named
    wrapping: Wrapping


def _set(keys: tuple[str, ...], value: Any) -> Config:
    inside = value
    for key in reversed(keys):
        inside = {key: inside}
    return Config("wrong values", yaml.dump(inside, allow_unicode=True), keys, Wrapping("utf-8"))


def _executing(keys: tuple[str, ...], value: Any) -> Config:
    return _set(keys, value)._replace(kind="executes")


INPUTS = st.one_of(
    st.builds(_set, st.sampled_from(KEYS), LEAVES),
    st.builds(_set, st.sampled_from(KEYS), VALUES),
    st.builds(_executing, st.sampled_from([keys for keys in KEYS if keys[0] != "run"]), st.sampled_from(EXECUTES)),
    *[
        st.builds(Config, st.just(kind), texts, st.just(()), st.just(Wrapping("utf-8")))
        for kind, texts in TEXTS.items()
    ],
    st.builds(Config, st.just("encoding"), st.just("trainer:\n  max_epochs: 1 # größer\n"), st.just(()), WRAPPINGS),
)


def trial(bench: Bench, config: Config, folder: Path) -> Trial:
    """The configuration after those of stage 1; what it says of places and devices does not count."""
    path, nowhere = folder / "bad.yaml", folder / "nowhere"
    path.write_bytes(wrapped(config.text, config.wrapping))
    files = (CONF / "pretrain_ctc.yaml", CONF / "size" / "tiny.yaml", path)
    fixed = {
        "--trainer.accelerator": "cpu",
        "--trainer.devices": "1",
        "--trainer.num_nodes": "1",
        "--data.root": str(nowhere),
        "--run": str(folder / "run"),
    }
    arguments = [part for file in files for part in ("--config", str(file))]
    if config.keys != ("model", "init_args", "tokenizer"):
        fixed["--model.tokenizer"] = str(bench.tokenizer)
    arguments += [part for option in fixed.items() for part in option]
    named = (str(path), str(nowhere), "does not accept option '", *config.keys[-2:])

    def judge(ended: Ended) -> tuple[str, str]:
        return "broken", "it has trained without data"

    return Trial(f"{config.kind}: fit", "speechllm", ["fit", *arguments], named, judge)
