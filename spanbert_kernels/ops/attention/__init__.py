"""What both attention operations share: raw operators over any work, and checks."""
