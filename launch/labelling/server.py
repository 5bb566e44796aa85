"""Serve the page for labelling on this machine: `triaxial moderate label`.

The address of each labeller begins with a random token of their own, so that no labeller can answer in another's name.
An answer must come from the page itself: a page of a stranger could send a browser here.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from gpt.errors import ConfigError
from gpt.files.json_text import decode_json
from launch.labelling.page import labelling_page
from launch.labelling.task import AlreadyAnsweredError, LabellingTask, WrongAnswerError
from launch.local_pages.server import LocalHandler, LocalServer, is_token

MAX_BODY_BYTES = 1 << 16  # an answer has a few hundred
WINDOW_CHARACTERS = 64

Action = Callable[[str, str, Mapping[str, Any]], dict[str, Any]]


class LabellingServer(LocalServer):
    """The pages of all labellers. Use as a context manager; `urls` are their addresses with the tokens."""

    def __init__(self, task: LabellingTask, labellers: Sequence[str], *, blur: bool = False, port: int = 0) -> None:
        self.task, self.blur = task, blur
        self.tokens = {name: secrets.token_urlsafe(18) for name in labellers}
        super().__init__(_Handler, port=port)

    @property
    def urls(self) -> dict[str, str]:
        return {name: self.address_of(token) for name, token in self.tokens.items()}

    def labeller_of(self, token: str) -> str | None:
        """The labeller whose token this is."""
        found = [name for name, own in self.tokens.items() if is_token(token, own)]
        return found[0] if found else None


class _Handler(LocalHandler):
    server: LabellingServer

    def do_GET(self) -> None:
        labeller, name = self._asked()
        if labeller is None or name:
            self._fault(HTTPStatus.NOT_FOUND, "not found")
            return
        page = labelling_page(self.server.task.taxonomy, labeller=labeller, blur=self.server.blur)
        self.send(page.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        labeller, name = self._asked()
        task = self.server.task
        actions: dict[str, Action] = {
            "state": lambda who, window, given: task.state(who, window),
            "answer": task.answer,
            "undo": lambda who, window, given: task.undo(who, window),
            "skipped": lambda who, window, given: task.ask_skipped(who, window),
        }
        if labeller is None or name not in actions:
            self.close_connection = True  # its body is not read
            self._fault(HTTPStatus.NOT_FOUND, "not found")
            return
        given = self._body()
        if given is not None:
            self._act(actions[name], labeller, given)

    def _asked(self) -> tuple[str | None, str]:
        """The labeller by the token of the address, and the rest of the address. None: this request is not ours."""
        token, name, _ = self.asked()
        return self.server.labeller_of(token), name

    def _body(self) -> dict[str, Any] | None:
        """The JSON object that the page sent; else answer with the fault and return None."""
        length, kind = self.headers.get("Content-Length", ""), self.headers.get_content_type()
        origin = self.headers.get("Origin")
        fault = None
        if origin is not None and origin != f"http://{self.headers['Host']}":
            fault = HTTPStatus.FORBIDDEN, "the request comes from another page"
        elif kind != "application/json":  # a form of another page cannot send it
            fault = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"
        elif not (length.isascii() and length.isdigit()):
            fault = HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing"
        elif len(length) > 12 or int(length) > MAX_BODY_BYTES:
            fault = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {MAX_BODY_BYTES:,} bytes"
        if fault is not None:
            self.close_connection = True
            self._fault(*fault)
            return None
        data = self.read_body(int(length))
        try:
            given = decode_json(data)
        except ValueError:
            given = None
        if not isinstance(given, dict) or not isinstance(given.get("window"), str):
            self._fault(HTTPStatus.BAD_REQUEST, "the body must be a JSON object with a window")
            return None
        return given

    def _act(self, action: Action, labeller: str, given: Mapping[str, Any]) -> None:
        try:
            state = action(labeller, given["window"][:WINDOW_CHARACTERS], given)
        except WrongAnswerError as error:
            self._fault(HTTPStatus.BAD_REQUEST, str(error))
        except AlreadyAnsweredError:
            self._fault(HTTPStatus.CONFLICT, "another window has answered this text meanwhile")
        except OSError as error:
            self._fault(HTTPStatus.INSUFFICIENT_STORAGE, f"the disk refuses it: {(error.strerror or '').lower()}")
        except ConfigError as error:
            self._fault(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            self.send(json.dumps(state, allow_nan=False).encode(), "application/json")

    def _fault(self, status: HTTPStatus, text: str) -> None:
        self.send(json.dumps({"problem": text}).encode(), "application/json", status)
