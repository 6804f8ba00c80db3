"""Files of documents: one module a format, and the count of what was taken from them and what was left out."""
