"""Seal the pickles that torch loads from the network: the rendezvous and the objects of collectives.

torch's TCP store and gloo have no authentication, and a pickle can run code. Each pickle therefore travels with an
HMAC-SHA256, and is loaded only if its HMAC fits. Tensors, addresses and sizes are not sealed.
"""

import hmac
import io
import re
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from gpt.errors import ConfigError
from launch.processes.environment import JOB_SECRET, job_secret
from launch.processes.error_reports import forget_stop, last_word
from launch.processes.rank_group import reserved_port
from parallel.errors import ForgedMessage

_SECRET = re.compile("[0-9A-Za-z+/_=-]{32,}")  # at least 128 bits in hexadecimal digits; or more, in base64
_MIN_DISTINCT = 8  # characters; of 32 random hexadecimal digits, fewer are distinct once in 27 million times
BACKEND = "triaxial"  # the name of our rendezvous in torch's registry
_HMAC_BYTES = 32


def new_secret() -> str:
    """A secret for one job, 256 bits as hexadecimal digits."""
    return secrets.token_hex(32)


def shared_secret() -> str:
    """The secret of a job on several nodes. ConfigError: there is none, or its form is not that of random digits.

    A guessable secret of that form passes: a text alone does not show whether it is random.
    """
    secret = job_secret() or ""
    if not _SECRET.fullmatch(secret) or len(set(secret)) < _MIN_DISTINCT:
        found = f"has {len(secret)} characters, {len(set(secret))} of them distinct" if secret else "is not set"
        raise ConfigError(
            f"{JOB_SECRET} {found}: the nodes of a run need a secret of at least 32 random hexadecimal or base64 "
            "characters. Set the same on every node, for example the output of `openssl rand -hex 32`"
        )
    return secret


@dataclass(frozen=True)
class Seal:
    """Authenticates the messages of one purpose; the same on all processes of a job."""

    key: bytes

    @classmethod
    def of(cls, secret: str, purpose: str) -> "Seal":
        """The seal of messages for `purpose`; one that was made for another purpose does not fit."""
        return cls(hmac.digest(secret.encode(), purpose.encode(), "sha256"))

    def close(self, message: bytes) -> bytes:
        """The message behind its HMAC."""
        return hmac.digest(self.key, message, "sha256") + message

    def open(self, sealed: bytes) -> bytes:
        """The message of `close`. ForgedMessage: another key sealed it, or it was changed."""
        found, message = sealed[:_HMAC_BYTES], sealed[_HMAC_BYTES:]
        if not hmac.compare_digest(found, hmac.digest(self.key, message, "sha256")):
            raise ForgedMessage(
                f"a message from the network has no valid seal of this job; it was not loaded. Either {JOB_SECRET} "
                "differs on another node, or a stranger reaches the ports of the nodes. Set the same on every node, "
                "close the ports to others, then start the job again"
            )
        return message


# ---- the objects of collectives --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SealedPickler:
    pickler: Callable[[BinaryIO], Any]
    seal: Seal
    file: BinaryIO

    def dump(self, value: Any) -> None:
        plain = io.BytesIO()
        self.pickler(plain).dump(value)
        self.file.write(self.seal.close(plain.getvalue()))


@dataclass(frozen=True)
class _SealedUnpickler:
    unpickler: Callable[[BinaryIO], Any]
    seal: Seal
    file: BinaryIO

    def load(self) -> Any:
        return self.unpickler(io.BytesIO(self.seal.open(self.file.read()))).load()


def seal_object_collectives() -> None:
    """Let this process load objects from other ranks only if they are sealed; without a secret as torch does.

    Every rank of a job calls it before its first collective.
    """
    from torch.distributed import distributed_c10d

    torch_collectives: Any = distributed_c10d
    secret = job_secret()
    if secret is None or isinstance(torch_collectives._pickler, partial):  # a partial: sealed already
        return
    seal = Seal.of(secret, "objects of collectives")
    pickler, unpickler = torch_collectives._pickler, torch_collectives._unpickler
    torch_collectives._pickler = partial(_SealedPickler, pickler, seal)
    torch_collectives._unpickler = partial(_SealedUnpickler, unpickler, seal)


# ---- the rendezvous of the launchers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SealedBackend:
    """torch's c10d rendezvous backend, whose state is a pickle in a store, with that pickle sealed."""

    inner: Any  # a C10dRendezvousBackend
    seal: Seal

    @property
    def name(self) -> str:
        return BACKEND

    def get_state(self) -> tuple[bytes, Any] | None:
        """As RendezvousBackend.get_state. RendezvousStateError: somebody without the secret wrote the state."""
        found = self.inner.get_state()
        return None if found is None else (self._open(found[0]), found[1])

    def set_state(self, state: bytes, token: Any | None = None) -> tuple[bytes, Any, bool] | None:
        """As RendezvousBackend.set_state, and raises as `get_state`."""
        found = self.inner.set_state(self.seal.close(state), token)
        return None if found is None else (self._open(found[0]), *found[1:])

    def _open(self, sealed: bytes) -> bytes:
        from torch.distributed.elastic.rendezvous import RendezvousStateError

        try:
            return self.seal.open(sealed)
        except ForgedMessage as error:
            raise RendezvousStateError(
                "somebody without the secret of this job wrote to its rendezvous; nothing of it was loaded. Either "
                f"{JOB_SECRET} differs on another node, or a stranger reaches the ports of the nodes. Set the same on "
                "every node, close the ports to others, then start the job again"
            ) from error


def register_rendezvous() -> None:
    """Make the rendezvous named BACKEND known to torch elastic in this process."""
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    rendezvous_handler_registry.register(BACKEND, _rendezvous)


def _rendezvous(parameters: Any) -> Any:
    """torch elastic's handler. One node keeps the state in memory and listens nowhere; several nodes seal it."""
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, dynamic_rendezvous

    store: Any = HashStore()
    if parameters.max_nodes == 1:
        secret, inner = new_secret(), c10d_rendezvous_backend.C10dRendezvousBackend(store, parameters.run_id)
    else:
        secret = shared_secret()
        inner, store = c10d_rendezvous_backend.create_backend(parameters)
    backend: Any = SealedBackend(inner, Seal.of(secret, f"rendezvous {parameters.run_id}"))
    handler: Any = dynamic_rendezvous.create_handler(store, backend, parameters)
    join = handler.next_rendezvous
    if parameters.max_nodes == 1:
        join = _OnHeldPort(join)
    handler.next_rendezvous = _Rounds(join)
    return handler


class _OnHeldPort:
    """Let rank 0 listen on a port that is held for it, since another program could take one that torch only chose."""

    def __init__(self, join: Callable[[], Any]) -> None:
        self._join, self._held = join, ExitStack()
        self._port = self._held.enter_context(reserved_port())

    def __call__(self) -> Any:
        """Join the next round."""
        from torch.distributed.elastic.rendezvous.api import RendezvousInfo, RendezvousStoreInfo

        joined = self._join()
        return RendezvousInfo(
            joined.store, joined.rank, joined.world_size, RendezvousStoreInfo("127.0.0.1", self._port)
        )


class _Rounds:
    """Join the rounds of the rendezvous in turn, for the first start of the ranks and for each restart.

    After a "saved" no start follows: the launchers of other nodes may have ended already. A "stopped" is stale once the
    next start begins: torch elastic also stops rank 0 when another rank fails.
    """

    def __init__(self, join: Callable[[], Any]) -> None:
        self._join, self._is_first = join, True

    def __call__(self) -> Any:
        """Join the next round. RendezvousClosedError: the ranks of this node have saved, so the run ends."""
        from torch.distributed.elastic.rendezvous import RendezvousClosedError

        is_first, self._is_first, word = self._is_first, False, last_word()
        if word == "saved" and not is_first:
            raise RendezvousClosedError("the ranks of this node have saved after a signal")
        joined = self._join()
        if word == "stopped":
            forget_stop()
        return joined
