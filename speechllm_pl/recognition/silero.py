"""Pauses by Silero's voice activity detector, a small network that knows speech from other sounds (extra `vad`)."""

import numpy as np
import torch

from speechllm_pl.core.audio.units import SAMPLING_RATE, samples_in
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.audio_pieces import PAUSE_SECONDS, Stretch


class SileroPauses:
    """Finds pauses in samples; the detector's weights are in its package.

    Raises:
        UserError: silero-vad is not installed.
    """

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            from silero_vad import get_speech_timestamps, load_silero_vad
        except ImportError as error:
            raise UserError(
                "pauses silero needs silero-vad: pip install -e '.[vad]', or let the CTC head find them (ctc)"
            ) from error
        finally:
            torch.set_num_threads(threads)  # the import sets it to one
        self._model, self._speech = load_silero_vad(), get_speech_timestamps

    def __call__(self, samples: np.ndarray) -> list[Stretch]:
        """Find the stretches without speech in `(N,)` samples at 16 kHz."""
        found = self._speech(torch.from_numpy(samples), self._model, sampling_rate=SAMPLING_RATE)
        edges = [0, *(edge for each in found for edge in (each["start"], each["end"])), len(samples)]
        pauses = zip(edges[::2], edges[1::2], strict=True)
        return [(first, end) for first, end in pauses if end - first >= samples_in(PAUSE_SECONDS)]
