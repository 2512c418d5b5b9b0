"""The command line: one file a command, which parses, calls the Python function and prints."""
