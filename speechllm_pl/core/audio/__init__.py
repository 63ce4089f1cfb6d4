"""What is known of audio without a model: its units, its files, and whether these can be believed."""
