"""The fixture `env` of the upload tests serves these tests too."""

from upload.conftest import env

__all__ = ["env"]
