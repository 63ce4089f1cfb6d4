"""Speech encoders: waveforms in, frames and CTC logits out, by the interface of `models/ctc.py`."""
