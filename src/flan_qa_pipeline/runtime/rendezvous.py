"""The meeting point of a run's processes on this machine: a store that listens on loopback only."""

import socket

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "loopback"
HOST = "127.0.0.1"


class LoopbackRendezvous(RendezvousHandler):
    """A rendezvous of one launcher, whose processes use its store.

    The stores of torch's own rendezvous listen on all addresses of the machine.
    """

    def __init__(self, run_id: str):
        self._run_id = run_id
        listening = socket.create_server((HOST, 0))
        self._port = listening.getsockname()[1]
        self._store = TCPStore(
            HOST,
            self._port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(HOST, self._port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Do nothing: no other launcher can join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def register() -> None:
    """Make this rendezvous known to torch under the name `BACKEND`."""

    def create(parameters: RendezvousParameters) -> RendezvousHandler:
        return LoopbackRendezvous(parameters.run_id)

    rendezvous_handler_registry.register(BACKEND, create)
