"""Cluster: the machines of a Ray cluster as one pool. Whatever workers.py does in processes is done there
while an engine is on: features, sentences, coverage, the runs of a suite. Training is not: it stays with
accelerate.

The machine that asks draws the items one by one, keeps what comes back and writes it, so nothing needs a
shared file system but what is read (data, under the same path) and the run folders of a suite. Imports
neither Ray nor torch at the top."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import pickle
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, TypeAlias, cast

from wordsight import __version__
from wordsight.extras import needed
from wordsight.files import WordsightError

Engine: TypeAlias = Literal["here", "ray"]

TRIES = 5  # how often an item is done again whose process or machine ended
AHEAD = 2  # items under way for each that is done at once: the next lie ready, and an autoscaler sees them
LOOK_SECONDS = 10.0  # after which the cluster is asked anew how large it is
CONNECT_SECONDS = 5.0  # a cluster that is there takes a connection at once
SENT = ("WORDSIGHT_", "HF_")  # environment variables that the processes are given, but for secrets
# what an HTTP/2 server, as Ray's is, answers with a frame of settings, and nothing else does
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
AGAIN = "perhaps for lack of memory; the same command goes on from here"
START_ONE = "`ray start --head` starts one on this machine"

log = logging.getLogger("wordsight")
_current: Cluster | None = None


class WorkerKilled(WordsightError):
    """A worker process was ended from outside, as the system does when memory runs out. The items that it and
    its neighbours had in hand have no result; `item` is the one that did it, where that is known.
    """

    item: Any = None


# -- the engine --


@contextlib.contextmanager
def engine(name: Engine = "here", address: str | None = None) -> Iterator[None]:
    """Where many things at once are done meanwhile: `with wordsight.engine("ray", "head:6379"): ...`.

    "ray": on the cluster at `address` (HOST:PORT of its head; by default $RAY_ADDRESS, or the one that this
    machine belongs to; "local" starts one here), or on the one that Ray is already connected to. "here": on
    this machine, or on the engine around this one. Errors: WordsightError where no cluster answers, within
    seconds."""
    global _current
    if name not in ("here", "ray"):
        raise WordsightError(f"engine={name!r} is none; give here or ray")
    if name == "here" and address is not None:
        raise WordsightError(f"address={address} is a Ray cluster's; give engine=ray with it")
    if name == "here" or _current is not None:
        yield
        return
    with _connected(address) as ray:
        _current = Cluster(ray)
        try:
            yield
        finally:
            _current = None


@dataclass(frozen=True, kw_only=True)
class Where:
    """What all settings of work that may go to a cluster have."""

    # ray: on a Ray cluster, that at address= or in $RAY_ADDRESS (docs/scale.md); training stays here
    engine: Engine = "here"
    address: str | None = None  # HOST:PORT of the cluster's head

    def on(self) -> contextlib.AbstractContextManager[None]:
        """The engine that they name. Errors: WordsightError, as `engine`."""
        return engine(self.engine, self.address)


def current() -> Cluster | None:
    """The cluster that work goes to, if any."""
    return _current


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # they are ours to tell
    with needed("ray", "engine=ray"):
        import ray
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    elif address != "auto":
        check_address(address)
    try:
        with _signals_kept():
            options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
            options |= {"include_dashboard": False} if address == "local" else {}
            ray.init(address=address, **options)
    except Exception as error:  # Ray raises of every kind
        if "AuthenticationError" in f"{error} {error.__cause__}":
            raise WordsightError(
                f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
                f"to what `ray get-auth-token` says on its head"
            ) from error
        raise _no_cluster(address, " ".join(str(error).split())[:300]) from error
    try:
        with contextlib.redirect_stdout(cast(TextIO, _Answers(sys.stdout))):
            yield ray
    finally:
        ray.shutdown()


class _Answers:
    """stdout, but for what Ray's threads print there of machines that ended: that goes to stderr, as all
    messages do, and not between the lines of an answer."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        is_theirs = threading.current_thread().name.startswith("ray_")
        return (sys.stderr if is_theirs else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray makes SIGTERM end this process by an exit; what stood before stands again after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_address(address: str) -> None:
    """Errors: WordsightError where no cluster can be at `address`. Ray itself looks for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        other = "; run the command on one of its machines, or by `ray job submit`" * ("://" in address)
        raise WordsightError(
            f"address={address} is no address of a Ray cluster; give HOST:PORT of its head, as 10.0.0.1:6379"
            + other
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
                return
            connection.settimeout(CONNECT_SECONDS)
            connection.sendall(PREFACE)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error
    if answer[3:4] != b"\x04":
        raise _no_cluster(address, "something else answers there; Ray's port is 6379 where none was chosen")


def _no_cluster(address: str, why: str) -> WordsightError:
    if address == "auto":
        return WordsightError(
            "engine=ray finds no Ray cluster from here: give address=HOST:PORT of its head or set "
            f"RAY_ADDRESS; {START_ONE}"
        )
    return WordsightError(f"no Ray cluster answers at {address} ({why}); is it up? {START_ONE}")


# -- work --


class Needs(NamedTuple):
    """What a process needs for one item."""

    cpus: int = 1
    gpus: int = 0


ONE_CPU = Needs()


class Start(NamedTuple):
    """What a process of the cluster has to know of the one that asked."""

    version: str
    folder: str  # what relative paths mean
    environment: dict[str, str]
    level: int  # of the log


class Cluster:
    """A cluster that is connected."""

    def __init__(self, ray: Any):
        self.ray, self.far = ray, ray.remote(_far)
        self.kept: dict[str, Any] = {}

    def keep(self, key: str, value: Any) -> Any:
        """What stands for `value` in any later `given`; it is sent to a machine once for the same key."""
        if key not in self.kept:
            self.kept[key] = self._put(value)
        return self.kept[key]

    def each(
        self, call: Callable[..., Any], items: Iterable[Any], given: Sequence[Any], needs: Needs
    ) -> Generator[Any, None, None]:
        """`call(item, *given)` of every item, each once, as the results come. `given` is sent to a machine
        once. An item whose process or machine ends is done again, five times at most.

        Errors: what `call` raises; WorkerKilled for an item that ends every process; WordsightError where a
        machine lacks Wordsight."""
        room, dumps = _Room(self.ray, needs), self.ray.cloudpickle.dumps
        options = {"num_cpus": room.cpus, "num_gpus": needs.gpus, "max_retries": TRIES, "name": "wordsight"}
        far, refs = self.far.options(**options), list(map(self._sent, given))
        start, items, pending = _start(), iter(items), {}
        try:
            while True:
                for item in itertools.islice(items, max(0, room.slots() * AHEAD - len(pending))):
                    pending[far.remote(start, dumps((call, item)), refs)] = item
                if not pending:
                    return
                done = self.ray.wait(list(pending))[0][0]
                yield self._result(done, pending.pop(done))
        finally:
            for ref in pending:
                with contextlib.suppress(Exception):  # it may have ended just now
                    self.ray.cancel(ref, force=True)

    def _sent(self, value: Any) -> Any:
        return value if isinstance(value, self.ray.ObjectRef) else self._put(value)

    def _put(self, value: Any) -> Any:
        try:
            return self.ray.put(value)
        except (TypeError, pickle.PicklingError) as error:
            raise WordsightError(
                f"{type(value).__name__} cannot be sent to other machines: {str(error).splitlines()[0]}"
            ) from error

    def _result(self, ref: Any, item: Any) -> Any:
        ended = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
        errors = self.ray.exceptions
        try:
            result = self.ray.get(ref)
        except errors.RayTaskError as error:
            cause = error.cause
            raise (_not_installed(cause) if isinstance(cause, ImportError) else cause) from None
        except tuple(getattr(errors, name) for name in ended) as error:
            killed = WorkerKilled(f"{1 + TRIES} processes were ended from outside at the same work; {AGAIN}")
            killed.item = item
            raise killed from error
        except errors.RaySystemError as error:
            raise _not_installed(error) from error
        if isinstance(result, _Failed):
            raise result.error
        return result

    def slots(self, needs: Needs) -> int:
        """How many items that need so much are done at once now."""
        return _Room(self.ray, needs).slots()

    def check_shared(self, folder: Path) -> None:
        """Errors: WordsightError where a machine of the cluster does not see what this one writes there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        folder.mkdir(parents=True, exist_ok=True)
        mark = folder.absolute() / f".{uuid.uuid4().hex}"
        mark.touch()
        try:
            nodes = [node["NodeID"] for node in self.ray.nodes() if node["Alive"]]
            places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
            look = [self.far.options(num_cpus=0, scheduling_strategy=place) for place in places]
            asked = self.ray.cloudpickle.dumps((_sees, str(mark)))
            seen = [self._result(ref, mark) for ref in [one.remote(_start(), asked, []) for one in look]]
        finally:
            mark.unlink()
        blind = [host for host, sees in seen if not sees]
        if blind:
            raise WordsightError(
                f"{len(blind)} of {len(seen)} machines of the cluster, {blind[0]} first, do not see folder "
                f"{str(folder)!r}; give a folder that all of them share"
            )


class _Room:
    """How much a cluster does at once. It may grow and shrink."""

    def __init__(self, ray: Any, needs: Needs):
        self.ray, self.gpus, self.looked, self.known = ray, needs.gpus, -math.inf, 1
        most = max((node["CPU"] for node in self._nodes()), default=0)
        if most < 1:
            kind = f"with {needs.gpus} GPU " * bool(needs.gpus)
            log.warning(
                "the cluster has no machine %sthat does any work yet; this waits until one joins", kind
            )
        self.cpus = min(needs.cpus, int(most)) if most >= 1 else 1

    def _nodes(self) -> list[dict[str, float]]:
        """What the machines that can take part have."""
        found = [{"CPU": 0, "GPU": 0, **one["Resources"]} for one in self.ray.nodes() if one["Alive"]]
        return [node for node in found if node["GPU"] >= self.gpus]

    def slots(self) -> int:
        if time.monotonic() - self.looked > LOOK_SECONDS:
            fits = [
                min(node["CPU"] // self.cpus, node["GPU"] // self.gpus if self.gpus else math.inf)
                for node in self._nodes()
            ]
            self.known, self.looked = max(1, int(sum(fits))), time.monotonic()
        return self.known


def _not_installed(error: BaseException) -> WordsightError:
    return WordsightError(
        f"a machine of the cluster cannot run Wordsight {__version__} "
        f"({' '.join(str(error).split())[-200:]}); every machine needs the same packages as this one"
    )


# -- in a process of the cluster --

_got: dict[str, Any] = {}  # what was sent, by reference


def _start() -> Start:
    names = [name for name in os.environ if name.startswith(SENT) and "TOKEN" not in name]
    environment = {name: os.environ[name] for name in names}
    return Start(__version__, os.getcwd(), environment, log.getEffectiveLevel())


class _Failed(NamedTuple):
    """An error on its way: of those that are raised, Ray prints what nobody waits for any more."""

    error: Exception


def _far(start: Start, pickled: bytes, refs: list[Any]) -> Any:
    """Do what `pickled` holds: a function and its item, which are unpacked once the environment stands that
    their imports read.
    """
    if start.version != __version__:
        raise ImportError(f"it has Wordsight {__version__}")
    os.environ |= start.environment
    log.setLevel(start.level)
    with contextlib.suppress(OSError):
        os.chdir(start.folder)
    call, item = pickle.loads(pickled)  # of this command, over Ray's own channel
    try:
        return call(item, *map(_get, refs))
    except Exception as error:
        return _Failed(error)


def _get(ref: Any) -> Any:
    """What was sent, read once in this process."""
    if ref.hex() not in _got:
        import ray

        while len(_got) >= 4:
            del _got[next(iter(_got))]
        _got[ref.hex()] = ray.get(ref)
    return _got[ref.hex()]


def _sees(path: str) -> tuple[str, bool]:
    return socket.gethostname(), os.path.exists(path)
