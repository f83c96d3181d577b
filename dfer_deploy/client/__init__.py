"""Clients for a served model: clips, encoded images, whole videos and live streams. The base install is enough."""

from __future__ import annotations

from dfer_deploy.answers.clip_answers import Answer, StreamAnswer
from dfer_deploy.answers.video_windows import VideoWindows
from dfer_deploy.client.asynchronous import AsyncClient, AsyncStream
from dfer_deploy.client.blocking import Client, Stream
from dfer_deploy.errors import CallError, IncompatibleServerError
from dfer_deploy.inference.windows import Window

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "CallError",
    "Client",
    "IncompatibleServerError",
    "Stream",
    "StreamAnswer",
    "VideoWindows",
    "Window",
]
