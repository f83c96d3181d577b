"""What export writes and everything else opens."""
