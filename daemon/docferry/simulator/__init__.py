"""A local Codat, Wootiv and S3 to try things against."""
