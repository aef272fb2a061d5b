"""What users do with a model: one module a verb, each with `add_arguments` and `run`."""
