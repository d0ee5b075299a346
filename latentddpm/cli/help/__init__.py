"""Help on the command line: pages, ready configurations, completion by the shell."""
