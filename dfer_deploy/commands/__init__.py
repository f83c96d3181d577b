"""One module for each command of the command line. It is imported when the command is called."""
