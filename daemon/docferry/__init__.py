"""Upload documents from folders to Codat and Wootiv, each exactly once, with proof."""

__version__ = "0.1.0"
