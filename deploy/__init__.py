"""The outermost ring: the command line, the service catalogue, the process runtime and the composition roots."""
