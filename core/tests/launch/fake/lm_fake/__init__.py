"""A package whose verbs do what the command line says, at once and without MindSpore."""
