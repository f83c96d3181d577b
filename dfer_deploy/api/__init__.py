"""One call for everything that the command line does; the commands are thin over these modules."""
