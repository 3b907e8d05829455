"""Watch files, to hurry the scanner."""
