"""Implement HTTP/1.1 for documents: httpx's requests and responses, httptools' parser, exact progress of each body."""

from docferry.remotes.http.client import HttpClient
from docferry.remotes.http.diagnose import Step, diagnose
from docferry.remotes.http.file_sink import file_sink
from docferry.remotes.http.multipart import Form, PlainBody, content_type
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.public_addresses import PublicOnly
from docferry.remotes.http.request_body import Body
from docferry.remotes.http.response import (
    MAX_CONTENT_BYTES,
    MAX_PAUSE_S,
    Destination,
    OpenSink,
    Response,
    Sink,
    parse_json,
    parse_time,
    require_body_complete,
    require_whole,
    retry_after,
    safe_text,
    should_retry,
)

__all__ = [
    "MAX_CONTENT_BYTES",
    "MAX_PAUSE_S",
    "Body",
    "Destination",
    "Form",
    "HttpClient",
    "HttpOptions",
    "OpenSink",
    "PlainBody",
    "PublicOnly",
    "Response",
    "Sink",
    "Step",
    "content_type",
    "diagnose",
    "file_sink",
    "parse_json",
    "parse_time",
    "require_body_complete",
    "require_whole",
    "retry_after",
    "safe_text",
    "should_retry",
]
