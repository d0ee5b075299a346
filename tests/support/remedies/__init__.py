"""Messages of the command line with their remedies: a table for each room."""
