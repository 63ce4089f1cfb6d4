"""Third floor: LightningModules, schedules, checkpoints, callbacks."""
