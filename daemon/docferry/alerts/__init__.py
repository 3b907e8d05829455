"""Alert people: observe conditions, decide on messages, and send them to the receivers."""
