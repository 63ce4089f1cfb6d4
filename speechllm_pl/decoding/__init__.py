"""Second floor: models and score functions in, text out."""
