"""Send documents from separate processes: the daemon decides, sender processes read and encrypt the documents."""
