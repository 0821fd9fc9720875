"""Launching trainings here and on SLURM; signals, requeue, resume."""
