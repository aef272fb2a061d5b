"""Models as graphs in files (MindIR), which run without the code that made them."""
