"""Weights on disk: foreign layouts, file formats, atomic directories, what a name means."""
