"""Counts and durations of what preparation kept and rejected."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from data_prep.corpora.entries import SPLITS


@dataclass
class Summary:
    """What was kept, by split and language, and what was rejected, by kind of reason."""

    utterances: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split or subset, language) → how many
    seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))  # likewise
    rejected: Counter[str] = field(default_factory=Counter)  # kind of reason → how many

    def table(self) -> str:
        """Format utterances, hours and seconds per split and language, then the rejected ones by kind of reason."""
        width = max([6, *(len(split) for split, _ in self.utterances)])
        lines = [f"{'split':<{width}} {'language':<9}{'utterances':>11}{'hours':>10}{'seconds':>13}"]
        for split in sorted({split for split, _ in self.utterances}, key=_place_of_split):
            languages = sorted(language for of, language in self.utterances if of == split)
            rows = [(language, [(split, language)]) for language in languages]
            if len(rows) > 1:
                rows.append(("all", [(split, language) for language in languages]))
            for name, keys in rows:
                count, total = sum(self.utterances[key] for key in keys), sum(self.seconds[key] for key in keys)
                lines.append(f"{split:<{width}} {name:<9}{count:>11}{total / 3600:>10.2f}{total:>13.0f}")
        lines.append(f"rejected: {self.rejected.total()}")
        lines += [f"  {count:>6}  {kind}" for kind, count in self.rejected.most_common()]
        return "\n".join(lines)

    def strangers(self) -> list[str]:
        """Languages that dev or test has and train lacks."""
        of_train = {language for split, language in self.utterances if split.startswith("train")}
        others = {language for split, language in self.utterances if not split.startswith("train")}
        return sorted(others - of_train) if of_train else []

    def to_json(self) -> bytes:
        rows = [[*key, count, self.seconds[key]] for key, count in self.utterances.items()]
        return json.dumps({"kept": rows, "rejected": self.rejected}).encode()

    def add_json(self, content: bytes) -> None:
        """Add another summary, as its `to_json` gave it."""
        record = json.loads(content)
        for split, language, count, seconds in record["kept"]:
            self.utterances[split, language] += count
            self.seconds[split, language] += seconds
        self.rejected.update(record["rejected"])


def _place_of_split(split: str) -> tuple[int, str]:
    """Sort key: train, dev, test, each followed by its subsets."""
    places = [place for place, known in enumerate(SPLITS) if split.startswith(known)]
    return (places or [len(SPLITS)])[0], split
