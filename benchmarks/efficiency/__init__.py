"""How well 8 to 512 GPUs would be used: arithmetic from recorded bytes and predicted times. No GPU has run it."""
