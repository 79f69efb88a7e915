"""Small models that show whether a runtime handles the weights that its profile is about."""
