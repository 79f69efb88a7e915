"""What layers read for calibration inputs, and what errors there do."""
