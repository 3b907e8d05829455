"""The file watcher, which hurries the scanner."""
