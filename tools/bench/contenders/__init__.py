"""The libraries that are compared. Each class has the same methods and imports one library."""
