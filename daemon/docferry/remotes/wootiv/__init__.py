"""Access Wootiv and the S3 storage behind its signed URLs."""
