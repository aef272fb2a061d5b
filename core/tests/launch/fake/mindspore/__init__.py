"""Stands for MindSpore where the scheduler is started."""
