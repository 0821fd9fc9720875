"""What a training step is made of, and what surrounds a training."""
