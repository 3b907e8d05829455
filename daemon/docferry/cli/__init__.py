"""Implement the commands: parse arguments, run, and print for people."""
