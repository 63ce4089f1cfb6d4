"""Fourth floor: waveforms in, text out. Knows no trainer."""
