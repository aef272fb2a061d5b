"""Training: schedules, the compiled step, the loop around it, and what a checkpoint of it holds."""
