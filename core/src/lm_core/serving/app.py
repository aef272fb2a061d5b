"""HTTP around a `Service`: who may ask, how much, and how answers travel.

A request is refused with the least work that shows what is wrong with it: first who asks, then how
long it is, then what it says. starlette is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from lm_core.errors import LmError
from lm_core.serving.calls import Call, Service
from lm_core.serving.errors import ApiError
from lm_core.serving.protocol import Asked, ChatAsked, CompletionAsked

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Found = TypeVar("Found")
AskedKind = TypeVar("AskedKind", bound=Asked)

_GONE = "client: has gone"
BODY_SECONDS = 30.0
"""A client has so long to send a request."""
GRACE_SECONDS = 30.0
"""And so long to read the rest of a stream whose time is over."""
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


def build(service: Service, api_key: bytes | None, hosts: frozenset[str] | None) -> Starlette:
    """The application.

    Args:
        service: answers.
        api_key: what clients must show; None: nothing.
        hosts: names of this server that clients may use; None: any. Where there is no key, this
            keeps out web pages that have made their own name point here.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import ClientDisconnect
    from starlette.routing import Route

    api = _Api(service)
    told: dict[Any, Any] = {
        ApiError: _told,
        ClientDisconnect: _told_nobody,
        HTTPException: _told_of_http,
        Exception: _told_of_bug,
    }
    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.model),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, api_key=api_key, hosts=hosts)],
        exception_handlers=told,
    )


class _Guard:
    """Lets nobody in who has not the key, and answers to its own names alone."""

    def __init__(self, app: Any, api_key: bytes | None, hosts: frozenset[str] | None) -> None:
        self.app, self.key, self.hosts = app, api_key, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        fault = None
        if scope["type"] == "http":
            fault = self._problem(dict(scope["headers"]), scope["path"])
        if fault is None:
            await self.app(scope, receive, send)
        else:
            await _response(fault.body, fault.status)(scope, receive, send)

    def _problem(self, headers: dict[bytes, bytes], path: str) -> ApiError | None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name.lower() not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            return ApiError(403, f"host: is {name!r:.80}; must be one of {known}; use one")
        kind, _, shown = headers.get(b"authorization", b"").partition(b" ")
        right = kind.lower() == b"bearer" and hmac.compare_digest(shown.strip(), self.key or b"")
        if self.key is None or right or path == "/health":
            return None
        return ApiError(
            401, "api_key: is missing or wrong; must be the server's; send it", "invalid_api_key"
        )


class _Api:
    """The handlers."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def health(self, request: Request) -> Response:
        engine = self.service.engine
        running, waiting = engine.load
        state = {"status": "ok" if engine.open else "draining"}
        counts = {"running": running, "waiting": waiting}
        return _response({**state, **counts}, 200 if engine.open else 503)

    async def models(self, request: Request) -> Response:
        return _response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._check_name(request.path_params["name"])
        return _response(self._model())

    async def completions(self, request: Request) -> Response | _Stream:
        return await self._reply(request, CompletionAsked)

    async def chat(self, request: Request) -> Response | _Stream:
        if not self.service.chats:
            raise ApiError(
                404,
                f"model: {self.service.name} has no chat format; must be one that was trained to "
                f"chat; use /v1/completions",
                "no_chat_format",
            )
        return await self._reply(request, ChatAsked)

    def _model(self) -> dict[str, Any]:
        own = {"id": self.service.name, "object": "model", "created": self.service.created}
        return {**own, "owned_by": "lm", "max_model_len": self.service.room}

    def _check_name(self, asked: str) -> None:
        if asked != self.service.name:
            raise ApiError(
                404,
                f"model: {asked!r:.80} is not here; must be {self.service.name!r}; change it",
                "model_not_found",
            )

    async def _reply(self, request: Request, kind: type[Asked]) -> Response | _Stream:
        asked = await self._asked(request, kind)
        self._check_name(asked.model)
        call = await self.service.open(asked)
        if asked.stream:
            options = asked.stream_options
            return _Stream(self.service, call, options is not None and options.include_usage)
        try:
            return _response(await _unless_gone(request, _whole(call)))
        finally:
            self.service.close(call)

    async def _asked(self, request: Request, kind: type[AskedKind]) -> AskedKind:
        """The request, read and checked."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != "application/json":
            # A web page may send anything else here without asking first.
            raise ApiError(
                415, f"content-type: is {given!r:.80}; must be application/json; change it"
            )
        try:
            values = json.loads(await self._body(request))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"body: is not JSON ({error}); must be an object") from None
        if not isinstance(values, dict):
            raise ApiError(400, "body: is no object; must be a JSON object; change it")
        try:
            return kind.read(values)
        except LmError as error:
            raise ApiError.of(error) from None

    async def _body(self, request: Request) -> bytes:
        most, found = self.service.limits.body, bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    found += chunk
                    if len(found) > most:
                        raise ApiError(413, f"body: must have at most {most} bytes; shorten it")
        except TimeoutError:
            raise ApiError(408, "body: took too long; must come at once; send it again") from None
        return bytes(found)


async def _whole(call: Call) -> dict[str, Any]:
    found: list[list[Any]] = [[] for _ in call.answers]
    async for piece in call.pieces():
        found[piece.choice].append(piece)
    return call.reply.whole(found, call.usage)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Found]) -> Found:
    """What comes of the work, which ends when the client goes away.

    Raises:
        ApiError: it did; nobody reads this.
    """
    watch = asyncio.ensure_future(_gone(request))
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({watch, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, _GONE)
        return task.result()
    finally:
        watch.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream:
    """A reply in server-sent events; the call ends with it, however it ends."""

    def __init__(self, service: Service, call: Call, usage: bool) -> None:
        self.service, self.call, self.usage = service, call, usage

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        from starlette.responses import StreamingResponse

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        try:
            # A client that does not read what it is sent would stay for ever.
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self.call.deadline + GRACE_SECONDS):
                    events = self._events()
                    response = StreamingResponse(events, 200, headers, "text/event-stream")
                    await response(scope, receive, send)
        finally:
            self.service.close(self.call)

    async def _events(self) -> AsyncIterator[bytes]:
        reply = self.call.reply
        for chunk in reply.begin(len(self.call.answers)):
            yield _event(chunk)
        try:
            async with aclosing(self.call.pieces()) as pieces:
                async for piece in pieces:
                    yield _event(reply.chunk(piece))
        except ApiError as fault:
            yield _event(fault.body)
            return
        if self.usage:
            yield _event(reply.end(self.call.usage))
        yield b"data: [DONE]\n\n"


def _event(values: dict[str, Any]) -> bytes:
    return b"data: " + _json(values) + b"\n\n"


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _response(values: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    from starlette.responses import Response

    return Response(_json(values), status, headers, "application/json")


async def _told(request: Request, fault: ApiError) -> Response:
    return _response(fault.body, fault.status, fault.headers)


async def _told_nobody(request: Request, error: Exception) -> Response:
    return _response(ApiError(499, _GONE).body, 499)


async def _told_of_http(request: Request, error: Any) -> Response:
    texts = {404: "path: is not known here; must be one of /v1/...; check base_url"}
    text = texts.get(error.status_code, f"request: {error.detail}")
    return _response(ApiError(error.status_code, text).body, error.status_code, error.headers)


async def _told_of_bug(request: Request, error: Exception) -> Response:
    return _response(ApiError(500, "server: failed; its log says why").body, 500)
