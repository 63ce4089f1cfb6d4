"""Second floor: optimisers and learning-rate schedules."""
