"""Find out what this machine can do, and whether that is what a bundle needs."""
