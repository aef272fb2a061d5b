"""Raw text to records, and records to batches."""
