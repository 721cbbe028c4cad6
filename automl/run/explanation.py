"""Why the best policy is what it is: what it does to each layer, what that loses alone, and what of a budget it saves.

The sensitivity of a layer is what is lost when that layer alone is compressed as the best policy does, and all else
stays whole; on the validation images, without fine-tuning. Losses of layers need not add up to that of the policy: what
stands behind a compressed layer makes up for some errors and enlarges others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from automl.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy, LayerPolicy, layer_from_json, layer_to_json
from search_spaces.resolution import Resolution, text
from search_spaces.versions import require_version

FORMAT = 1
IMAGES = 256
"""Validation images that losses are measured on, where there are as many."""
WHOLE, TOGETHER, INPUT = " whole", " together", " input"
"""Beside the names of layers: the network as it is, under the whole policy, and with its images resized alone."""
Cost = tuple[float, float]
"""Before and after compression."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a policy loses.

    Attributes:
        accuracy: by how much it falls (of a metric of the user's, larger being better); below 0 where it rises.
        divergence: mean over the images of KL(outputs of the whole network || of the compressed one), in nats; None
            where it is not known.
        error: why it was not found out, None where it was.
    """

    accuracy: float
    divergence: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ExplainedLayer:
    """A layer, or what else a policy speaks of (a block that is left out, the images), under the best policy.

    Attributes:
        name: of the layer.
        policy: what the best policy says under this name; of the channels it speaks for all layers of the group.
        kept, width: output channels that stay, of how many; None of what is no layer.
        group: under which names, this layer's own aside, the policy speaks of its channels; None where under no other.
        loss: of this alone; None where nothing is done under this name.
        costs: by metric, before and after compression.
        resolution: height and width that images are brought to, of the images.
    """

    name: str
    policy: LayerPolicy
    kept: int | None
    width: int | None
    group: str | None
    loss: Loss | None
    costs: Mapping[str, Cost]
    resolution: Resolution | None = None


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """What a network takes of a budget.

    Attributes:
        metric: of the cost.
        limit: None where policies were not bound.
        before, after: compression; batch norms and what else is no layer's included.
    """

    metric: str
    limit: float | None
    before: float
    after: float

    @property
    def whole(self) -> float:
        """What shares are of: the limit where there is one, else the uncompressed network's cost."""
        return self.limit or self.before or 1.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """The best policy, layer by layer.

    Attributes:
        policy: its digest.
        images: that losses were measured on.
        together: what the whole policy loses on them.
        budgets: what the network takes of each; without one, of the cost that policies were compared by.
        layers: in execution order.
    """

    policy: str
    images: int
    together: Loss
    budgets: Sequence[BudgetUse]
    layers: Sequence[ExplainedLayer]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        layers = [{**asdict(layer), "policy": layer_to_json(layer.policy)} for layer in self.layers]
        return {"format": FORMAT, **asdict(self), "layers": layers}

    @classmethod
    def read(cls, path: Path) -> "Explanation | None":
        """What `to_json` gave, from a file; None where there is none.

        Raises:
            InputError: the file is damaged, or of another version.
        """
        try:
            values = json.loads(path.read_bytes(), parse_constant=_no_number)
            remedy = "remove it, and `trimtab resume` makes it anew"
            require_version(repr(str(path)), values.pop("format"), [FORMAT], remedy, called="format")
            return cls(
                **{
                    **values,
                    "policy": str(values["policy"]),
                    "images": int(values["images"]),
                    "together": _loss_of(values["together"]),
                    "budgets": [_budget_of(budget) for budget in values["budgets"]],
                    "layers": [_layer(layer) for layer in values["layers"]],
                }
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{str(path)!r} is damaged: {error}") from None


def policies_to_try(graph: ModelGraph, best: CompressionPolicy) -> dict[str, CompressionPolicy]:
    """What must be evaluated to explain a policy, by the name of the layer that each compresses alone.

    Names of layers of which the policy says nothing that changes them are left out.
    """
    tried = {WHOLE: CompressionPolicy({}, best.model), TOGETHER: best}
    alone = {name: CompressionPolicy({name: said}, best.model) for name, said in best.layers.items()}
    alone[INPUT] = CompressionPolicy({}, best.model, best.resolution)
    return tried | {name: policy for name, policy in alone.items() if graph.apply(policy) != graph}


def explain(
    graph: ModelGraph,
    best: CompressionPolicy,
    found: Mapping[str, Evaluation],
    *,
    images: int,
    budgets: Sequence[BudgetUse],
    costs: Mapping[str, Mapping[str, Cost]],
) -> Explanation:
    """The explanation of a policy.

    Args:
        graph: of the uncompressed network.
        best: the policy.
        found: evaluations of `policies_to_try`.
        images: that they were made on.
        budgets: what the network takes of them.
        costs: of each layer, by metric and name.
    """
    whole, after = found[WHOLE], graph.apply(best)
    losses = {name: _loss(whole, each) for name, each in found.items()}
    gone = {layer for block in after.removed for layer in block.layers}
    said = {name for name, layer in best.layers.items() if layer.keep is not None}
    layers = []
    for spec in graph.full_layers:
        layers.append(
            ExplainedLayer(
                name=spec.name,
                policy=best.layers.get(spec.name, LayerPolicy()),
                kept=0 if spec.name in gone else spec.out_extent.size(after.kept),
                width=spec.out_extent.size(graph.kept),
                group=", ".join(_deciding(graph, spec, said)) or None,
                loss=losses.get(spec.name),
                costs={metric: by_name[spec.name] for metric, by_name in costs.items()},
            )
        )
    names = {spec.name for spec in graph.full_layers}
    others = [
        ExplainedLayer(name, layer, None, None, None, losses.get(name), {})
        for name, layer in best.layers.items()
        if name not in names
    ]
    if INPUT in losses:
        others.append(ExplainedLayer("images", LayerPolicy(), None, None, None, losses[INPUT], {}, best.resolution))
    return Explanation(best.digest, images, losses[TOGETHER], budgets, [*layers, *others])


def in_words(layer: ExplainedLayer) -> str:
    """What the policy does to a layer, in a few words."""
    said = layer.policy
    if said.remove or layer.kept == 0:
        return "left out"
    if layer.resolution is not None:
        return f"{text(layer.resolution)} pixels"
    words = []
    if layer.kept is not None and layer.kept != layer.width:
        words.append(f"{layer.kept} of {layer.width} channels{f' with {layer.group}' if layer.group else ''}")
    if said.factors is not None:
        method, rank = said.factors
        words.append(f"rank {' x '.join(map(str, rank))} {method}")
    if said.zeros is not None:
        words.append(f"{said.zeros.share:.0%} zeros, {said.zeros.pattern}")
    for what, bits in (("weights", said.weight_format), ("activations", said.activation_format)):
        if bits is not None:
            words.append(f"{bits.bits}-bit {what}")
    return ", ".join(words) or "stays whole"


def _deciding(graph: ModelGraph, spec: LayerSpec, said: set[str]) -> list[str]:
    """The names under which a policy speaks of a layer's output channels, its own left out."""
    groups = {group.name for group in graph.groups}
    found = []
    for index, _ in spec.out_extent.terms:
        group = graph.groups[index]
        members = {*group.producers, *group.carriers} - groups  # a group's name speaks for that group alone
        found += [name for name in (group.name, *sorted(members)) if name in said][:1]
    return [name for name in found if name != spec.name]


def _loss(whole: Evaluation, found: Evaluation) -> Loss:
    error = whole.error or found.error
    if error is not None:
        return Loss(0.0, None, error)
    known = found.divergence is not None and isfinite(found.divergence)
    return Loss(whole.accuracy - found.accuracy, found.divergence if known else None)


def _loss_of(values: Mapping[str, Any]) -> Loss:
    accuracy, divergence, error = (values[name] for name in ("accuracy", "divergence", "error"))
    return Loss(
        float(accuracy), None if divergence is None else float(divergence), None if error is None else str(error)
    )


def _budget_of(values: Mapping[str, Any]) -> BudgetUse:
    limit, before, after = (values[name] for name in ("limit", "before", "after"))
    return BudgetUse(str(values["metric"]), None if limit is None else float(limit), float(before), float(after))


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _costs(values: Mapping[str, Sequence[float]]) -> dict[str, Cost]:
    return {metric: (float(before), float(after)) for metric, (before, after) in values.items()}


def _layer(values: Mapping[str, Any]) -> ExplainedLayer:
    return ExplainedLayer(
        **{
            **values,
            "policy": layer_from_json(values["name"], values["policy"]),
            "kept": None if values["kept"] is None else int(values["kept"]),
            "width": None if values["width"] is None else int(values["width"]),
            "resolution": None if values["resolution"] is None else tuple(map(int, values["resolution"])),
            "loss": None if values["loss"] is None else _loss_of(values["loss"]),
            "costs": _costs(values["costs"]),
        }
    )
