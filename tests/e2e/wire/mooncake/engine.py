"""Mooncake's engine as SGLang uses it: one process writes into the registered memory of another.

Here over a loopback connection: for each piece its address, its length and its bytes.
"""

import ctypes
import socket
import struct
from collections.abc import Sequence
from threading import Thread

PIECE = struct.Struct("<QQ")
DONE = b"+"


class TransferEngine:
    def initialize(self, _hostname: str, _handshake: str, _protocol: str, _device: str) -> int:
        self._regions: dict[int, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        Thread(target=self._listen, daemon=True).start()
        _send_indices_without_pinned_memory()
        return 0

    def get_rpc_port(self) -> int:
        return self._listener.getsockname()[1]

    def register_memory(self, address: int, length: int) -> int:
        return self.batch_register_memory([address], [length])

    def batch_register_memory(self, addresses: Sequence[int], lengths: Sequence[int]) -> int:
        self._regions.update(zip(addresses, lengths, strict=True))
        return 0

    def unregister_memory(self, address: int) -> int:
        return self.batch_unregister_memory([address])

    def batch_unregister_memory(self, addresses: Sequence[int]) -> int:
        for address in addresses:
            del self._regions[address]
        return 0

    def transfer_sync_write(self, session: str, address: int, target: int, length: int) -> int:
        return self.batch_transfer_sync_write(session, [address], [target], [length])

    def batch_transfer_sync_write(
        self, session: str, addresses: Sequence[int], targets: Sequence[int], lengths: Sequence[int]
    ) -> int:
        port = int(session.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as wire:
            for address, target, length in zip(addresses, targets, lengths, strict=True):
                wire.sendall(PIECE.pack(target, length) + ctypes.string_at(address, length))
            wire.shutdown(socket.SHUT_WR)
            return 0 if wire.recv(1) == DONE else -1

    def send_probe(self, _session: str) -> int:
        return 0

    def _listen(self) -> None:
        while True:
            wire, _ = self._listener.accept()
            Thread(target=self._receive, args=(wire,), daemon=True).start()

    def _receive(self, wire: socket.socket) -> None:
        with wire, wire.makefile("rb") as stream:
            while header := stream.read(PIECE.size):
                target, length = PIECE.unpack(header)
                assert self._is_registered(target, length), f"{target=} {length=} is nobody's memory"
                piece = stream.read(length)
                assert len(piece) == length
                ctypes.memmove(target, piece, length)
            wire.sendall(DONE)

    def _is_registered(self, target: int, length: int) -> bool:
        return any(
            first <= target and target + length <= first + size for first, size in self._regions.items()
        )


def _send_indices_without_pinned_memory() -> None:
    """Which no machine without a GPU has."""
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

    MooncakeKVSender.supports_host_tensor_indices = False
