"""Training: the loop, and torch's optimizers and schedules from their options."""
