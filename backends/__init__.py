"""Model in, something that runs out."""
