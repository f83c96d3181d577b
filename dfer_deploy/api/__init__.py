"""One function for each thing that the command line does; the commands are thin wrappers around these modules."""
