"""Upload documents: from a row in the queue to a receipt."""
