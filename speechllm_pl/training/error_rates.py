"""Word and character error rates over batches and ranks: counts are pooled, rates never averaged."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from speechllm_pl.core.metrics import ScoredUtterance


class PooledErrorRates(Metric):
    """Error counts per language, pooled over batches and ranks; the average is the plain mean over languages.

    Each utterance is one row of integers, so that ranks with different numbers of utterances or different languages
    can gather them directly.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # torchmetrics stands an empty float tensor in for a rank without rows, and gloo aborts on mixed types.
        self.rows.append(torch.zeros(0, dtype=torch.long, device=self.device))

    def update(self, utterances: list[ScoredUtterance]) -> None:
        rows = [
            (
                _code(u.language),
                u.words.errors,
                u.words.reference,
                u.characters.errors,
                u.characters.reference,
            )
            for u in utterances
        ]
        self.rows.append(torch.tensor(rows, dtype=torch.long, device=self.device).flatten())

    def compute(self) -> dict[str, dict[str, float]]:
        """Compute `{"average": {"wer": …, "cer": …}, "en": {…}, …}`, as fractions."""
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows  # a tensor once gathered
        rows = rows.reshape(-1, 5)
        rates: dict[str, dict[str, float]] = {}
        for code in sorted(set(rows[:, 0].tolist()), key=_language):
            _, word_errors, words, character_errors, characters = rows[rows[:, 0] == code].sum(0).tolist()
            rates[_language(code)] = {
                "wer": word_errors / max(words, 1),
                "cer": character_errors / max(characters, 1),
            }
        average = {kind: sum(rate[kind] for rate in rates.values()) / max(len(rates), 1) for kind in ("wer", "cer")}
        return {"average": average, **rates}


def _code(language: str) -> int:
    """A language code of up to seven letters as one integer, so that it can travel in a tensor."""
    return int.from_bytes(language.encode()[:7], "big")


def _language(code: int) -> str:
    return code.to_bytes(7, "big").lstrip(b"\0").decode()


def summary_line(system: str, rates: dict[str, dict[str, float]]) -> str:
    """One line to read in a log: average (plain mean over languages), then each language (pooled)."""
    each: list[Any] = [f"{name} {100 * rate['wer']:.1f}" for name, rate in rates.items() if name != "average"]
    average = rates["average"]
    return (
        f"{system}: WER {100 * average['wer']:.2f} %, CER {100 * average['cer']:.2f} % (mean over languages);"
        f" WER {', '.join(each)}"
    )
