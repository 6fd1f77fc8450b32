"""How front ends are spoken to: one file each, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.dialects.base import FrontendDialect, ViewOptions
from gateway.dialects.native import NativeSSE
from gateway.dialects.ndjson import NDJSON
from gateway.dialects.openai_chat import OpenAIChat
from gateway.dialects.text import PlainText

FRONTEND_DIALECTS: Mapping[str, Callable[[ViewOptions], FrontendDialect]] = {
    "sse": NativeSSE,
    "ndjson": NDJSON,
    "text": PlainText,
    "openai-chat": OpenAIChat,
}
"""By the name that `?dialect=` takes. Each is called anew for every view of a run."""
