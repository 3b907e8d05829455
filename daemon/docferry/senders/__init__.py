"""Send documents from processes of their own: the daemon decides what is sent, sender processes read and encrypt it."""
