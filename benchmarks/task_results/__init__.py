"""What the tasks reach on real data, from a trained encoder, and how much faster the accelerated path trains."""
