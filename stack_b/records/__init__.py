"""What is noted of each request."""
