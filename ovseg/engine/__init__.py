"""Training: optimiser, schedule, trainer, checkpoints, processes."""
