"""A package whose verb adds up ranks with MindSpore."""
