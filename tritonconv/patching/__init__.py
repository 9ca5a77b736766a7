"""What `patch` does to a model, and how it is tried, shown and undone."""
