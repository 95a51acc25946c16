"""What an MCP tool answered, as a JSON value.

structured content            -> that value
a lone text                   -> that text, never parsed: what a tool says does not choose its type
anything else                 -> a list of {"type": "text", …}, {"type": "image", "artifact": "artifact://…", …}, …

Bytes (pictures, sound, blobs) become artifacts of the run, so that a result stays small and carries labels as files do.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types

from dataplane.mcp.failures import McpFailed
from dataplane.protocol import ArtifactRef
from dataplane.sendable import plain

PARTS_MOST = 256
FILES_MOST = 16
_MEDIA_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+-]{1,100}\Z")
_TEXT_MOST = 1000

Keep = Callable[[str, str, bytes], Awaitable[ArtifactRef]]
"""``keep(name, media type, bytes)`` stores an artifact of the run."""


async def value_of(result: types.CallToolResult, keep: Keep) -> tuple[Any, tuple[ArtifactRef, ...]]:
    """The value and the artifacts made for it. Raises ``McpFailed`` where the tool itself failed, or says too much."""
    if result.is_error:
        said = " ".join(part.text for part in result.content if isinstance(part, types.TextContent))
        raise McpFailed("mcp_tool_error", f"the tool failed: {plain(said[:_TEXT_MOST]) or 'it does not say why'}")
    if result.structured_content is not None:
        return result.structured_content, ()
    if len(result.content) > PARTS_MOST:
        raise McpFailed("mcp_flood", f"the answer has more than {PARTS_MOST} parts")
    if len(result.content) == 1 and isinstance(result.content[0], types.TextContent):
        return result.content[0].text, ()
    parts: list[dict[str, Any]] = []
    files: list[ArtifactRef] = []
    for part in result.content:
        shown, media_type, encoded = _part(part)
        if encoded is not None:
            if len(files) == FILES_MOST:
                raise McpFailed("mcp_flood", f"the answer has more than {FILES_MOST} files")
            try:
                data = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise McpFailed("mcp_garbage", f"the answer has {shown['type']} that is not base64") from None
            kind = media_type if _MEDIA_TYPE.match(media_type) else "application/octet-stream"
            kept = await keep(f"{shown['type']}-{len(files) + 1}", kind, data)
            files.append(kept)
            shown |= {"media_type": kind, "artifact": f"artifact://{kept.id}", "size_bytes": kept.size_bytes}
        parts.append(shown)
    return parts, tuple(files)


def _part(part: types.ContentBlock) -> tuple[dict[str, Any], str, str | None]:
    """The part without its bytes, their media type, and the bytes as base64, if it has any."""
    match part:
        case types.TextContent():
            return {"type": "text", "text": part.text}, "", None
        case types.ImageContent() | types.AudioContent():
            return {"type": part.type}, part.mime_type, part.data
        case types.ResourceLink():
            return {"type": "link", "uri": str(part.uri), "name": part.name}, "", None
        case types.EmbeddedResource(resource=types.TextResourceContents() as inner):
            return {"type": "resource", "uri": str(inner.uri), "text": inner.text}, "", None
        case types.EmbeddedResource(resource=types.BlobResourceContents() as inner):
            return {"type": "resource", "uri": str(inner.uri)}, inner.mime_type or "", inner.blob
    raise McpFailed("mcp_garbage", "the answer has a part of no kind that MCP knows")
