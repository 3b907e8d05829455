"""Provide the `env` of the upload tests."""

from upload.conftest import env

__all__ = ["env"]
