"""What the machine gives: quotas of cores and memory, child processes, folders with several writers."""
