"""Model in, model out."""
