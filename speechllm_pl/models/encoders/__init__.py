"""Speech encoders: waveforms in, frames and CTC logits out, as `models/ctc.py` asks it of them."""
