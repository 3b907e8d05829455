"""The client of Wootiv and of the S3 storage behind its signed URLs."""
