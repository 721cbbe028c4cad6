"""The compression policy: what is done to each layer. The portable artefact of a search, readable JSON."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from search_spaces.errors import InputError, did_you_mean

SCHEMA_VERSION = 1
MAX_BITS = 32


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """What is done to one layer; a field that is None leaves the layer untouched.

    Attributes:
        keep: share of the output channels that stay, in (0, 1]. It speaks for the layer's whole channel group.
        weight_bits: bits of each weight, 1 to 32. It speaks for this layer alone.
        activation_bits: bits of each value that the layer reads, 1 to 32. It speaks for this layer alone.
    """

    keep: float | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not (math.isfinite(self.keep) and 0.0 < self.keep <= 1.0):
            raise InputError(f"a layer keeps a share of its channels in (0, 1], got keep={self.keep}")
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits is not None and not (type(bits) is int and 1 <= bits <= MAX_BITS):
                raise InputError(f"{name} is a whole number from 1 to {MAX_BITS}, got {bits!r}")


@dataclass(frozen=True)
class CompressionPolicy:
    """Layer name -> `LayerPolicy`. A layer that is absent is left untouched.

    Attributes:
        layers: keyed by the name of a layer; for `keep`, of a channel group (the first layer that produces its
            channels) or of a layer in it.
        model: digest of the `ModelGraph` the policy was made for; None where the policy is free of a model.
    """

    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)
    model: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy cannot be pickled, and Ray sends policies
        return (type(self), (dict(self.layers), self.model))

    @classmethod
    def from_keep(cls, keep: Mapping[str, float], model: str | None = None) -> Self:
        """A channel-pruning policy from keep ratios by channel group."""
        return cls({name: LayerPolicy(keep=ratio) for name, ratio in keep.items()}, model)

    @property
    def digest(self) -> str:
        """SHA-256 over what the policy does; equal policies have equal digests."""
        return hashlib.sha256(json.dumps(self._layers_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The policy as indented JSON text, with its schema version."""
        document = {"schema_version": SCHEMA_VERSION, "model": self.model, "layers": self._layers_json()}
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InputError: not JSON, another schema version, an unknown key, or a value out of range.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"a policy is a JSON document: {error}") from None
        if not isinstance(document, dict) or not isinstance(document.get("layers"), dict):
            raise InputError("a policy is a JSON object with 'schema_version', 'model' and 'layers'")
        if document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"this version reads policies of schema {SCHEMA_VERSION}, got {document.get('schema_version')!r}"
            )
        model = document.get("model")
        if model is not None and not isinstance(model, str):
            raise InputError(f"a policy's 'model' is a digest or null, got {model!r}")
        return cls({name: _layer_from_json(name, entry) for name, entry in document["layers"].items()}, model)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a policy file; InputError names the file where it cannot be read."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"policy file {str(path)!r} cannot be read: {error.strerror}") from None
        except (UnicodeDecodeError, InputError) as error:
            raise InputError(f"policy file {str(path)!r}: {error}") from None

    def _layers_json(self) -> dict[str, dict[str, Any]]:
        return {
            name: {key: value for key, value in asdict(layer).items() if value is not None}
            for name, layer in sorted(self.layers.items())
        }


def _layer_from_json(name: str, entry: object) -> LayerPolicy:
    known = {field.name for field in fields(LayerPolicy)}
    if not isinstance(entry, dict):
        raise InputError(f"layer {name!r} of a policy is an object, got {entry!r}")
    for key, value in entry.items():
        if key not in known:
            raise InputError(f"layer {name!r} of a policy has the unknown key {key!r}{did_you_mean(key, known)}")
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise InputError(f"layer {name!r} of a policy: {key} is a number, got {value!r}")
    try:
        return LayerPolicy(**entry)
    except InputError as error:
        raise InputError(f"layer {name!r} of a policy: {error}") from None
