"""What a training run left behind, and how its audio embeddings align with the text."""
