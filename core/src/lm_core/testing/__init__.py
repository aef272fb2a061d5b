"""What tests of a model package are made of: the contract, recorded references, tiny models."""
