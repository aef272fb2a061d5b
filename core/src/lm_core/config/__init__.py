"""What a run is: typed sections with the keys of the model cards, read and checked as a whole."""
