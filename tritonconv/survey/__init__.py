"""What a model does on a sample, shown before anything is changed."""
