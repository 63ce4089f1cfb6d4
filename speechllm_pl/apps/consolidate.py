"""`speechllm consolidate`: a checkpoint of any kind as one safetensors folder."""

from pathlib import Path
from typing import Any

from speechllm_pl.apps.program_options import ConsolidateOptions
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.llm import merge_lora
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import PREFIX, Recognizer
from speechllm_pl.storage.checkpoints import RECORD, read_checkpoint
from speechllm_pl.storage.consolidated import save_consolidated


def consolidate(options: ConsolidateOptions) -> None:
    """Write what was trained as one folder of safetensors, which evaluate, transcribe and finetune read.

    Raises:
        UserError: the checkpoint is missing or damaged, or has no LLM to merge.
    """
    folder = Path(options.output)
    found = read_checkpoint(options.checkpoint)
    if options.merge:
        _save_merged(options, folder, found[RECORD])
    else:
        save_consolidated(folder, found[RECORD], found["state_dict"])
    print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB")


def _save_merged(options: ConsolidateOptions, folder: Path, record: dict[str, Any]) -> None:
    recognizer = Recognizer.load(options.checkpoint, options.llm, encoder=options.encoder)
    model, tokenizer = recognizer.model, recognizer.llm_tokenizer
    if not isinstance(model, SpeechLLM) or tokenizer is None:
        raise UserError(f"checkpoint {options.checkpoint} is of stage 1 and has no LLM to merge: leave --merge out")
    merged = merge_lora(model.llm)
    state = {PREFIX + name: value for name, value in model.state_dict().items() if not name.startswith("llm.")}
    settings = record["settings"] | {"lora_r": 0, "train_llm": False, "quantize": "none", "llm_revision": None}
    save_consolidated(
        folder,
        {**record, "precision": recognizer.precision, "settings": settings},
        state,
        llm=(merged, tokenizer.tokenizer),
    )
