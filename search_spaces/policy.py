"""The compression policy: what is done to each layer. The portable artefact of a search, readable JSON."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from search_spaces.errors import InputError, did_you_mean
from search_spaces.factorisations import FACTORISATIONS, Rank
from search_spaces.number_formats import MOST_BITS, SCHEMES, NumberFormat
from search_spaces.resolution import Resolution
from search_spaces.sparsity import Sparsity, window_of
from search_spaces.versions import require_version

_READ_VERSIONS = (1, 2, 3, 4)
"""Version 1 knew `keep` and bits of one scheme alone, version 2 no resolution, version 3 no kernel; all mean the same
now. A policy is written in the first from version 2 on that can hold it."""


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """What is done to one layer; a field that is None leaves the layer untouched.

    The layer's kernel is first cropped, then it is taken apart, pruned, made sparse and quantised. All but `keep` speak
    for this layer alone; zeros and bits hold for each of its parts.

    Attributes:
        keep: share of the output channels that stay, in (0, 1]. It speaks for the layer's whole channel group.
        kernel: of a convolution, how wide the middle of its kernel is that stays.
        rank: of the factorisation; two for "tucker2", of the input and of the output channels.
        factorisation: "svd" unless said otherwise; see `search_spaces.factorisations`.
        sparsity: share of the weights that become zero, in [0, 1); it follows from a pattern "N:M".
        pattern: in which they do, "element" unless said otherwise; see `search_spaces.sparsity`.
        weight_bits: of each weight, 1 to 16.
        weight_scheme, weight_granularity: "symmetric" ("binary" of one bit) and "channel" unless said otherwise; see
            `search_spaces.number_formats`.
        activation_bits: of each value that the layer reads, 1 to 16.
        activation_scheme: "asymmetric" unless said otherwise.
        remove: of a residual block, whether its branch is left out (see `search_spaces.blocks`); then nothing else is
            said of it.

    Raises:
        InputError: a value out of range, or one that needs another which is missing.
    """

    keep: float | None = None
    kernel: int | None = None
    rank: int | tuple[int, ...] | None = None
    factorisation: str | None = None
    sparsity: float | None = None
    pattern: str | None = None
    weight_bits: int | None = None
    weight_scheme: str | None = None
    weight_granularity: str | None = None
    activation_bits: int | None = None
    activation_scheme: str | None = None
    remove: bool | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not 0.0 < self.keep <= 1.0:
            raise InputError(f"a layer keeps a share of its channels in (0, 1], got keep={self.keep}")
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits is not None and not (type(bits) is int and 1 <= bits <= MOST_BITS):
                raise InputError(f"{name} is a whole number from 1 to {MOST_BITS}, got {bits!r}")
        if self.kernel is not None and not (type(self.kernel) is int and self.kernel >= 1):
            raise InputError(f"a kernel is a whole number of at least 1, got {self.kernel!r}")
        for names, needed in _NEEDED.items():
            for name in names:
                if getattr(self, name) is not None and getattr(self, needed) is None:
                    raise InputError(f"{name} {getattr(self, name)!r} needs {needed}; give it, or leave both out")
        if self.pattern is not None and self.sparsity is None and window_of(self.pattern) is None:
            raise InputError(f"the pattern {self.pattern!r} needs a sparsity; give it, or leave both out")
        if self.remove is not None and (type(self.remove) is not bool or self.treats or self.keep is not None):
            raise InputError(f"remove is true or false and says all that is done to a block, got {self}")
        # each of these refuses what makes no sense
        _ = self.factors, self.zeros, self.weight_format, self.activation_format

    @property
    def treats(self) -> bool:
        """Whether more than pruning is asked for."""
        fields = (self.kernel, self.rank, self.sparsity, self.pattern, self.weight_bits, self.activation_bits)
        return any(field is not None for field in fields)

    @property
    def factors(self) -> tuple[str, Rank] | None:
        """(factorisation, rank), None where the layer stays whole."""
        if self.rank is None:
            return None
        method = self.factorisation or "svd"
        if method not in FACTORISATIONS:
            raise InputError(f"there is no factorisation {method!r}{did_you_mean(method, FACTORISATIONS)}")
        rank = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        if not rank or not all(type(each) is int and each >= 1 for each in rank):
            raise InputError(f"a rank is a whole number of at least 1, or two of them, got {self.rank!r}")
        return method, rank

    @property
    def zeros(self) -> Sparsity | None:
        """The sparsity of its weights, None where they stay dense."""
        window = None if self.pattern is None else window_of(self.pattern)
        if self.sparsity is None and window is None:
            return None
        implied = 1.0 - window[0] / window[1] if window and 0 < window[0] <= window[1] else 0.0
        return Sparsity(self.pattern or "element", implied if self.sparsity is None else self.sparsity)

    @property
    def weight_format(self) -> NumberFormat | None:
        """Of its weights, None where they stay float32."""
        if self.weight_bits is None:
            return None
        scheme = self.weight_scheme or ("binary" if self.weight_bits == 1 else "symmetric")
        return NumberFormat(self.weight_bits, scheme, self.weight_granularity or "channel")

    @property
    def activation_format(self) -> NumberFormat | None:
        """Of the values it reads, None where they stay float32."""
        if self.activation_bits is None:
            return None
        found = NumberFormat(self.activation_bits, self.activation_scheme or "asymmetric", "tensor")
        if not SCHEMES[found.scheme].activations:
            known = ", ".join(name for name, scheme in SCHEMES.items() if scheme.activations)
            raise InputError(f"activations are represented by one of {known}, got {found.scheme!r}")
        return found


_FIELDS = tuple(field.name for field in fields(LayerPolicy))

_NEEDED = {
    ("factorisation",): "rank",
    ("weight_scheme", "weight_granularity"): "weight_bits",
    ("activation_scheme",): "activation_bits",
}
"""Fields that say nothing without another one."""


@dataclass(frozen=True)
class CompressionPolicy:
    """Layer name -> `LayerPolicy`. A layer that is absent is left untouched.

    Attributes:
        layers: keyed by the name of a layer; for `keep`, of a channel group (the first layer that produces its
            channels) or of a layer in it.
        model: digest of the `ModelGraph` the policy was made for; None where the policy is free of a model.
        resolution: height and width in pixels that images are brought to before they go in (see
            `search_spaces.resolution`); None leaves them as they are.

    Raises:
        InputError: a resolution that is none.
    """

    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)
    model: str | None = None
    resolution: Resolution | None = None

    def __post_init__(self) -> None:
        size = self.resolution
        if size is not None and not (len(size) == 2 and all(type(side) is int and side >= 1 for side in size)):
            raise InputError(f"a resolution is a height and a width in whole pixels, at least 1, got {size!r}")
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy cannot be pickled, and Ray sends policies
        return (type(self), (dict(self.layers), self.model, self.resolution))

    @classmethod
    def from_keep(cls, keep: Mapping[str, float], model: str | None = None) -> Self:
        """A channel-pruning policy from keep ratios by channel group."""
        return cls({name: LayerPolicy(keep=ratio) for name, ratio in keep.items()}, model)

    @property
    def digest(self) -> str:
        """SHA-256 over what the policy does; equal policies have equal digests."""
        does = self._layers_json() if self.resolution is None else [self._layers_json(), self.resolution]
        return hashlib.sha256(json.dumps(does, sort_keys=True).encode()).hexdigest()

    def to_json(self, *, compact: bool = False) -> str:
        """The policy as JSON text, with its schema version: indented, or on one line as short as it can be."""
        version, size = (2, {}) if self.resolution is None else (3, {"resolution": self.resolution})
        if any(layer.kernel is not None for layer in self.layers.values()):
            version = 4
        document = {"schema_version": version, "model": self.model, **size, "layers": self._layers_json()}
        return json.dumps(document, separators=(",", ":")) if compact else json.dumps(document, indent=2) + "\n"

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
        found = document.get("schema_version")
        require_version("a policy", found, _READ_VERSIONS, "write it in one of these", called="schema")
        model = document.get("model")
        if model is not None and not isinstance(model, str):
            raise InputError(f"a policy's 'model' is a digest or null, got {model!r}")
        size = document.get("resolution")
        if size is not None and not isinstance(size, list):
            raise InputError(f"a policy's 'resolution' is a list of height and width, or null, got {size!r}")
        layers = {name: layer_from_json(name, entry) for name, entry in document["layers"].items()}
        return cls(layers, model, None if size is None else tuple(size))

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
        return {name: layer_to_json(layer) for name, layer in sorted(self.layers.items())}


def beside_pruning(policy: CompressionPolicy) -> dict[str, LayerPolicy]:
    """What a policy does to layers and blocks other than choosing how many channels stay."""
    return {name: replace(each, keep=None) for name, each in policy.layers.items() if each.treats or each.remove}


def layer_to_json(layer: LayerPolicy) -> dict[str, Any]:
    """What is done to a layer, as JSON holds it."""
    return {name: value for name in _FIELDS if (value := getattr(layer, name)) is not None}


def layer_from_json(name: str, entry: object) -> LayerPolicy:
    """Read what `layer_to_json` gave.

    Raises:
        InputError: no object, an unknown key, or a value out of range; it names the layer.
    """
    if not isinstance(entry, dict):
        raise InputError(f"layer {name!r} of a policy is an object, got {entry!r}")
    for key, value in entry.items():
        if key not in _FIELDS:
            raise InputError(f"layer {name!r} of a policy has the unknown key {key!r}{did_you_mean(key, _FIELDS)}")
        if value is not None and not _of_kind(key, value):
            raise InputError(f"layer {name!r} of a policy: {key} is a {_kind(key)}, got {value!r}")
    if isinstance(entry.get("rank"), list):
        entry = {**entry, "rank": tuple(entry["rank"])}
    try:
        return LayerPolicy(**entry)
    except InputError as error:
        raise InputError(f"layer {name!r} of a policy: {error}") from None


_TEXTS = ("factorisation", "pattern", "weight_scheme", "weight_granularity", "activation_scheme")


def _kind(key: str) -> str:
    kinds = {"rank": "number or a list of two", "remove": "truth value"}
    return "text" if key in _TEXTS else kinds.get(key, "number")


def _of_kind(key: str, value: object) -> bool:
    if key in _TEXTS:
        return isinstance(value, str)
    if key == "remove":
        return isinstance(value, bool)
    values = value if key == "rank" and isinstance(value, list) else [value]
    return all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
