"""`speechllm consolidate`: a checkpoint of any kind as one safetensors folder."""

from pathlib import Path
from typing import Any

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.llm import merge_lora
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import PREFIX, Recognizer
from speechllm_pl.storage.checkpoints import RECORD, read_checkpoint
from speechllm_pl.storage.consolidated import save_consolidated


def consolidate(checkpoint: str, output: str, merge: bool = False, llm: str | None = None) -> None:
    """Write what was trained as one folder of safetensors, which evaluate, transcribe and finetune read.

    Args:
        checkpoint: of either stage, sharded or not.
        output: folder to write.
        merge: put the LLM into the folder too, with LoRA in its weights: a plain Hugging Face model in `llm`.
        llm: folder or name of the LLM, where it has moved since training.

    Raises:
        UserError: the checkpoint is missing or damaged, or has no LLM to merge.
    """
    folder = Path(output)
    found = read_checkpoint(checkpoint)
    if merge:
        _save_merged(checkpoint, folder, llm, found[RECORD])
    else:
        save_consolidated(folder, found[RECORD], found["state_dict"])
    print(f"{folder}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB")


def _save_merged(checkpoint: str, folder: Path, llm: str | None, record: dict[str, Any]) -> None:
    recognizer = Recognizer.load(checkpoint, llm)
    model, tokenizer = recognizer.model, recognizer.llm_tokenizer
    if not isinstance(model, SpeechLLM) or tokenizer is None:
        raise UserError(f"checkpoint {checkpoint} is of stage 1 and has no LLM to merge: leave --merge out")
    merged = merge_lora(model.llm)
    state = {PREFIX + name: value for name, value in model.state_dict().items() if not name.startswith("llm.")}
    settings = record["settings"] | {"lora_r": 0, "train_llm": False, "quantize": "none", "llm_revision": None}
    save_consolidated(
        folder,
        {**record, "precision": recognizer.precision, "settings": settings},
        state,
        llm=(merged, tokenizer.tokenizer),
    )
