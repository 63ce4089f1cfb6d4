"""Audio without a model: units, channels, resampling, and checks of what a manifest says of a file."""
