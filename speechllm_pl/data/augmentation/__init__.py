"""What is done to training utterances before they become a batch: speed, noise, reverberation, gain, codecs, joining.

Everything that is drawn is a function of (data.seed, epoch, utterance id, how often the epoch has had it before) and of
the augmentation's place in the list. So an utterance is changed in the same way whichever rank, worker or resumed run
reads it, and differently the next time. The signal processing is Lhotse's, called on samples, for its transforms of
cuts draw from generators that are shared by all the cuts of a process.
"""

from speechllm_pl.data.augmentation.codecs import CompressMp3, CompressMuLaw, CompressOpus
from speechllm_pl.data.augmentation.concatenation import Concatenate
from speechllm_pl.data.augmentation.noise_and_rooms import AddNoise, Reverberate
from speechllm_pl.data.augmentation.perturbation import Augmentation, Perturbation, augment
from speechllm_pl.data.augmentation.speed_and_gain import PerturbGain, PerturbSpeed

__all__ = [
    "AddNoise",
    "Augmentation",
    "CompressMp3",
    "CompressMuLaw",
    "CompressOpus",
    "Concatenate",
    "PerturbGain",
    "PerturbSpeed",
    "Perturbation",
    "Reverberate",
    "augment",
]
