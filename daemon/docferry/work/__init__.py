"""Where documents are carried: intake, runner, carry and pull."""
