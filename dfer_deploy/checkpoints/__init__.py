"""What is in this file, read without executing it."""
