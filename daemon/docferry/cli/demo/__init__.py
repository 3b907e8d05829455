"""The command `docferry demo`."""
