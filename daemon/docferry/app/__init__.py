"""Build the application and run it: as the daemon, as one pass, or as a dry run."""
