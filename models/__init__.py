"""Small trained models with their data, and a zoo of real graphs without weights."""
