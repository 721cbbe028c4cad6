"""The network a search starts from: trained once and cached by the digest of what made it, or read from a file."""

import copy
import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from automl.cache import atomic_path, cache_dir, digest_of, one_maker
from automl.data.bundle import DataBundle
from automl.plugins import one_line
from automl.training import EpochReport, TrainingOptions, train
from search_spaces.errors import InputError


def load_baseline(
    model: nn.Module,
    model_key: Mapping[str, Any],
    data: DataBundle,
    options: TrainingOptions,
    checkpoint: Path | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A trained copy of `model`, in eval mode; the model given is not changed.

    Without a checkpoint it is trained, unless the cache holds what the same model, initial weights, data, options and
    torch gave before. A damaged cache entry is trained and written anew. Where several processes miss the same one, one
    trains it.

    Args:
        model: freshly initialised, from `build_model`.
        model_key: what identifies the model in the config (name, arguments).
        data: what to train on.
        options: how.
        checkpoint: `.safetensors`, or `.pt`/`.pth` with weights only; None trains.
        on_epoch: told of every epoch; not called where nothing is trained.
        waiting: called now and then while another process trains it; may raise.

    Raises:
        InputError: the checkpoint is missing, damaged, or of another architecture.
        TrimtabError: training diverged.
    """
    trained = copy.deepcopy(model).eval()
    if checkpoint is not None:
        load_weights(trained, checkpoint)
        return trained
    file = baseline_file(model, model_key, data, options)
    with one_maker(file, waiting):
        try:
            trained.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError):  # absent, damaged, or not of this model
            trained = copy.deepcopy(model)
            train(trained, data, options, on_epoch=on_epoch)
            with atomic_path(file) as temporary:
                save_file(_contiguous(trained.state_dict()), temporary)
    return trained


def baseline_file(model: nn.Module, model_key: Mapping[str, Any], data: DataBundle, options: TrainingOptions) -> Path:
    """Where the cache keeps the baseline that these give."""
    how = asdict(options)
    del how["workers"]  # changes the speed, not the result
    recipe = {
        "model": dict(model_key),
        "structure": repr(model),
        "initial": state_digest(model),
        "data": data.digest,
        "options": how,
        "torch": torch.__version__,
    }
    name = "".join(c if c.isalnum() else "_" for c in f"{model_key.get('name', 'model')}-{data.name}")
    return cache_dir("baselines") / f"{name}-{digest_of(recipe)[:16]}.safetensors"


def state_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of a model's parameters and buffers, names and shapes included."""
    hasher = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into `model`, in place. Nothing in the file is run.

    Accepts a state dict, one under the key "state_dict" or "model", and names that start with "module."
    (DataParallel's).

    Raises:
        InputError: the file is missing or damaged, or its names or shapes are not those of the model.
    """
    state = _read_checkpoint(checkpoint)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue  # older checkpoints lack it, and nothing here reads it
            raise InputError(f"checkpoint {checkpoint} is of another architecture: it lacks {name!r}")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"checkpoint {checkpoint} is of another architecture: {name!r} is {list(state[name].shape)}, "
                f"the model has {list(tensor.shape)}"
            )
    for name in state:
        if name not in expected:
            raise InputError(f"checkpoint {checkpoint} is of another architecture: the model has no {name!r}")
    model.load_state_dict(state, strict=False)


def to_bytes(model: nn.Module) -> bytes:
    """The model's weights as a safetensors file, which `load_weights` reads."""
    content: bytes = save(_contiguous(model.state_dict()))
    return content


def _read_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    if not checkpoint.is_file():
        raise InputError(f"checkpoint {checkpoint} is not there")
    try:
        if checkpoint.suffix == ".safetensors":
            found: Any = load_file(checkpoint)
        elif checkpoint.suffix in (".pt", ".pth"):
            found = torch.load(checkpoint, map_location="cpu", weights_only=True)
        else:
            raise InputError(f"a checkpoint is a .safetensors, .pt or .pth file, got {checkpoint}")
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message advises to run whatever code the file holds
        raise InputError(
            f"checkpoint {checkpoint} cannot be read as weights only: it is damaged or holds more; save the model's "
            "state_dict() alone, best as safetensors"
        ) from error
    except Exception as error:  # torch's reader fails in many ways on a damaged file
        raise InputError(f"checkpoint {checkpoint} cannot be read as weights only ({one_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"checkpoint {checkpoint} holds no state dict (a mapping of names to tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Own, contiguous copies: safetensors stores no views."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
