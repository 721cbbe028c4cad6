"""Training a supernet on several processes at once, by Ray Train: each sees a part of the images of every step."""

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import ray
import torch
from ray import train
from ray.exceptions import RayError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import nn

from automl.cache import atomic_path
from automl.compression.elastic import Elastic
from automl.config_sections import SupernetSection
from automl.configured import example_input
from automl.data.bundle import DataBundle
from automl.errors import TrimtabError
from automl.metrics import Metric, accuracy
from automl.orchestration.address import cluster_address
from automl.orchestration.fitting import STOP_S
from automl.orchestration.placement import free_name, on_this_node
from automl.orchestration.pool import POLL_S, last_line
from automl.orchestration.ray_session import ray_session
from automl.supernet.network import Supernet
from automl.supernet.schedule import Schedule
from automl.supernet.training import Rank, Shard, SupernetReport, train_supernet
from automl.training_state import TrainingState
from search_spaces.capture import PrunableNetwork
from search_spaces.space import RESOLUTION


def train_in_parallel(
    supernet: Supernet,
    teacher: nn.Module,
    data: DataBundle,
    section: SupernetSection,
    rank: Rank,
    *,
    state: TrainingState,
    metric: Metric = accuracy,
    on_epoch: Callable[[SupernetReport], None] | None = None,
) -> None:
    """As `train_supernet`, on `section.workers` processes of one CPU each, or one GPU each.

    Every process draws the same sub-networks for its part of the images; gradients are added up. So the result is that
    of one process but for floating point, where no batch norm looks at the images together; it is the same for the same
    number of workers. Augmentation is drawn for whole batches, so every process loads all images.

    Raises:
        InputError: see `train_supernet`.
        TrimtabError: likewise, or Ray lacks the CPUs or GPUs.
    """
    Schedule.of(supernet.space, section)  # refused here rather than in a process of Ray
    with ray_session(section.workers) as scratch:
        _check_room(section)
        # a captured network cannot be sent: the processes capture their own, of the teacher
        parts = ray.put((teacher, supernet.space, supernet.state_dict(), data, section, rank, metric))
        actor: Any = ray.remote(_Keeper)
        keeper = actor.options(name=free_name("training"), num_cpus=0, scheduling_strategy=on_this_node()).remote(
            None if state.path is None else state.path.resolve(), state.about
        )
        cuda = section.training.device != "cpu"
        backend, local = "nccl" if cuda else "gloo", cluster_address() is None
        meeting = scratch / f"meeting-{token_hex(4)}" if local else None
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "parts": [parts],
                "keeper": keeper,
                "about": state.about,
                "backend": backend,
                "meeting": meeting,
            },
            torch_config=_Alone(backend) if local else TorchConfig(backend),
            scaling_config=train.ScalingConfig(num_workers=section.workers, use_gpu=cuda),
            run_config=train.RunConfig(name="supernet", storage_path=str(scratch)),
        )
        try:
            _fit(trainer, keeper, on_epoch)
            content = ray.get(keeper.read.remote())
        finally:
            ray.kill(keeper)
    with tempfile.TemporaryDirectory() as folder:  # nothing is left to train but what ends every training
        done = TrainingState(_written(Path(folder) / "state.pt", content), state.about)
        train_supernet(supernet, teacher, data, section, rank, state=done, metric=metric)


def _check_room(section: SupernetSection) -> None:
    """TrimtabError where Ray would wait for ever."""
    kind = "CPU" if section.training.device == "cpu" else "GPU"
    resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    found = int(resources.get(kind, 0))
    if found < section.workers:
        raise TrimtabError(
            f"supernet.workers is {section.workers}, one {kind} each, and the Ray that runs here has {found}; lower it"
        )


class _Keeper:
    """An actor on the driver's machine: keeps the state of the training and what is to be told of it.

    Args:
        path: of the state's file.
    """

    def __init__(self, path: Path | None, about: str) -> None:
        self._path = path
        self._content: bytes | None = path.read_bytes() if path is not None and path.is_file() else None
        self._reports: list[SupernetReport] = []
        self._stopped = False

    def read(self) -> bytes | None:
        """The newest state, as a file's content."""
        return self._content

    def done(self, content: bytes, report: SupernetReport) -> bool:
        """Another epoch is; whether to go on."""
        self._content = content
        if self._path is not None:
            with atomic_path(self._path) as temporary:
                temporary.write_bytes(content)
        self._reports.append(report)
        return not self._stopped

    def news(self, known: int) -> list[SupernetReport]:
        """Reports beyond the first ones."""
        return self._reports[known:]

    def stop(self) -> None:
        """The next epoch is the last."""
        self._stopped = True


class _Alone(TorchConfig):
    """Leaves it to the processes to find each other."""

    @property
    def backend_cls(self) -> type[Backend]:
        """That does nothing."""
        return Backend


@contextmanager
def _group(shard: Shard, backend: str, meeting: Path | None) -> Iterator[None]:
    """The processes as a group of torch's. Ray made it where they do not meet at a file.

    On one machine they do: where torch has processes meet, it listens at every interface.
    """
    if meeting is None:
        yield
        return
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    torch.distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=shard.rank, world_size=shard.count
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _work(given: Mapping[str, Any]) -> None:
    """What one of the processes does."""
    context = train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    teacher, space, tensors, data, section, rank, metric = ray.get(given["parts"][0])
    sizes = [size for each in space.decisions if each.dimension == RESOLUTION for size in each.choices if size]
    network = PrunableNetwork(teacher, example_input(data), resolutions=sizes)
    supernet = Supernet(network, space, Elastic({}))
    supernet.load_state_dict(tensors)
    keeper = given["keeper"]
    training = section.training.model_copy(update={"device": str(get_device())})
    with _group(shard, given["backend"], given["meeting"]), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        state = TrainingState(_written(path, ray.get(keeper.read.remote())), given["about"])

        def tell(report: SupernetReport) -> None:
            if shard.rank == 0 and not ray.get(keeper.done.remote(path.read_bytes(), report)):
                raise TrimtabError("stopped")  # Ray ends the other processes

        section = section.model_copy(update={"training": training})
        train_supernet(supernet, teacher, data, section, rank, state=state, metric=metric, on_epoch=tell, shard=shard)


def _written(path: Path, content: bytes | None) -> Path:
    if content is not None:
        path.write_bytes(content)
    return path


def _fit(trainer: TorchTrainer, keeper: Any, on_epoch: Callable[[SupernetReport], None] | None) -> None:
    """Run the training to its end, telling of every epoch in this thread."""
    failure: list[Exception] = []

    def run() -> None:
        try:
            trainer.fit()
        except Exception as error:  # handed to the thread that waits, which raises
            failure.append(error)

    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    thread = threading.Thread(target=run, name="supernet", daemon=True)  # Ray handles signals in a main thread
    thread.start()
    told, alive = 0, True
    try:
        while alive:
            thread.join(POLL_S)
            alive = thread.is_alive()
            for report in ray.get(keeper.news.remote(told)):
                told += 1
                if on_epoch is not None:
                    on_epoch(report)
    except BaseException:
        with suppress(RayError):
            ray.get(keeper.stop.remote(), timeout=STOP_S)
        raise
    if failure:
        errors = getattr(failure[0], "worker_failures", None) or {0: failure[0]}
        first = errors[min(errors)]
        message = (
            str(first) if isinstance(first, TrimtabError) else f"the training ended unexpectedly: {last_line(first)}"
        )
        raise TrimtabError(message) from first
