"""Audio without a model: units, channels, resampling, and checks of files before they are trusted."""
