"""Degrees, ranks and back ends of one run."""
