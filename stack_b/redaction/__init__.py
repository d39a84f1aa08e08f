"""Personal data and secrets out of what a backend sees."""
