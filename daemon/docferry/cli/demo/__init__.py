"""Run the command `docferry demo`."""
