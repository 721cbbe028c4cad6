"""What a remote device is called, and the processor that code for it is made for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.tvm.target import Cpu


@dataclass(frozen=True, slots=True)
class RemoteDevice:
    """Devices of one kind: equal ones, which share a latency table and are measured on at once.

    Attributes:
        tracker: "host:port" of the TVM RPC tracker that the devices are registered at.
        key: the name of their kind there; whatever is called so is taken for the same kind of device.
        mcpu: LLVM's name of their processor.
        triple: LLVM's name of the machine, such as "aarch64-linux-gnu"; empty where it is like this one.
        timeout_s: after which a device that does not answer is given up.
    """

    tracker: str
    key: str
    mcpu: str
    triple: str = ""
    timeout_s: float = 30.0

    @property
    def target(self) -> str:
        """What code is compiled for, in words."""
        return f"{self.mcpu} {self.triple}".strip()

    def cpu(self, threads: int) -> "Cpu":
        """The processor as schedules see it.

        Raises:
            InputError: LLVM does not know it.
        """
        from backends.tvm.target import cpu_for

        return cpu_for(self.mcpu, threads, self.triple)


@dataclass(frozen=True, slots=True)
class Place:
    """One device that a tracker has handed out.

    Attributes:
        host, port: of its server.
        match: the word that its server lets in whoever was sent by the tracker.
    """

    host: str
    port: int
    match: str

    @property
    def name(self) -> str:
        """What the device is called in messages."""
        return f"{self.host}:{self.port}"
