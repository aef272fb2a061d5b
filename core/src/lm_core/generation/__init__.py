"""Text generation: the key-value cache, sampling, beam search, streaming."""
