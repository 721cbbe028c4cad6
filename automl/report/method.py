"""How a run was measured, fact by fact: what a reader needs to judge its figures."""

from automl.engines import ENGINES
from automl.report import units
from automl.report.data import RunData


def method(data: RunData) -> list[tuple[str, str]]:
    """(what, how it was measured), in the order they are told."""
    config = data.config
    compression = config.compression
    steps = [
        f"AMC's least-squares reconstruction on {compression.calibration_images} training images"
        if compression.reconstruct
        else "no reconstruction",
        f"batch norm recalibrated on {compression.recalibrate_images} images"
        if compression.recalibrate_images
        else "batch norm not recalibrated",
    ]
    if any(each.policy.activation_bits for each in data.treatments):
        steps.append(
            f"ranges of activations by {compression.quantisation.activation_range} of {compression.calibration_images} "
            "training images"
        )
    facts = [
        ("MACs", "multiply-accumulates of convolution and linear layers, batch 1, bias not counted."),
        ("Parameters", "weights, biases and batch-norm affine terms; 4 bytes each."),
        ("Weights", "bytes as they are stored: float32, or codes with their scales, and zeros with an index."),
        (
            "Search accuracy",
            "of a slice held out of the training data, before fine-tuning. The search sees nothing else.",
        ),
        ("Test accuracy", "of the test split, read once for each network, after fine-tuning."),
        (
            "Fine-tuning",
            f"{config.fine_tune.epochs} epochs, learning rate {config.fine_tune.lr:g}, the same for every compressed "
            f"network; training from scratch has {_alone(data)}.",
        ),
        ("Compression", f"channels removed for good by {compression.importance}; {'; '.join(steps)}."),
        *_resolution_method(data),
        ("Budget", _budget_method(data)),
        ("Latency", _latency_method(data)),
        *_accelerator_method(data),
        ("Compared with", _controls(data)),
    ]
    if not data.shares:
        facts.append(
            ("Metric", f"{data.metric_name}; before fine-tuning, one that is to be minimised is shown negated.")
        )
    manifest = data.manifest
    if manifest is not None:
        facts.append(
            (
                "Machine that searched" if data.config.measure.device else "Machine",
                ", ".join(f"{name} {value}" for name, value in manifest.machine.items()) + ".",
            )
        )
        facts.append(("Versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items()) + "."))
    return facts


def _alone(data: RunData) -> str:
    """How long the network from scratch is trained."""
    supernet, baseline = data.config.supernet, data.config.baseline
    if supernet is None or not supernet.controls:
        return "as many epochs"
    return (
        f"{baseline.epochs + supernet.epochs}, as many as the supernet and its largest network had, at the latter's "
        f"learning rate {baseline.lr:g}"
    )


def _resolution_method(data: RunData) -> list[tuple[str, str]]:
    if not any(found.resolution for found in data.finalists.values()):
        return []
    text = (
        "images are brought to the resolution of each network before they go in, bilinear and antialiased: for "
        "calibration, fine-tuning (after augmentation), accuracy and latency alike."
    )
    return [("Resolution", text)]


def _accelerator_method(data: RunData) -> list[tuple[str, str]]:
    if not data.accelerator:
        return []
    found = next(iter(data.accelerator.values()))
    text = (
        f"{found.title}, as its description says ({found.source}). All of it is modelled, nothing was measured. Layers "
        f"run one after the other; sums, activations and pools between them are not counted. Checked: {found.checked}."
    )
    return [("Accelerator", text)]


def _controls(data: RunData) -> str:
    if not data.given:
        return "random search with as many evaluations and the same seeds; one uniform policy of the same budget."
    name = metric_label(data.cost_metric)
    return (
        f"one uniform policy of at most as many {name}, pruned only, in float32 (where no such policy is as cheap, the "
        "cheapest that space.lower_bound or space.keep allows); the same compressed network trained anew."
    )


def _budget_method(data: RunData) -> str:
    if data.config.budget is None:
        return "none."
    kept = "kept when the cost after rounding to real channel counts is within it."
    if data.budget.metric != "latency_s":
        return f"{kept} It was not searched by: the policy was given." if data.given else kept
    baseline = data.finalist("baseline")
    if data.given:
        text = "in latency, kept when the measured latency of the whole network is within it"
        if data.budget.measured_limit is not None and baseline is not None:
            text += f": {units.seconds(data.budget.measured_limit)}, where the baseline takes "
            text += units.seconds(baseline.latency_s)
        return f"{text}. It was not searched by: the policy was given."
    text = (
        "in latency. While searching, a policy's latency is the sum of its operators', each measured once on "
        f"{'this' if data.config.measure.device is None else 'the remote'} device and kept in a table"
    )
    if data.budget.margin is not None:
        text += (
            f"; the search held {units.percent(data.budget.margin, 1)} of the budget back for what the table misses of "
            "whole networks"
        )
    text += ". In the end whole networks are measured, and the budget is kept when that latency is within it"
    if data.budget.measured_limit is not None and baseline is not None:
        text += (
            f": {units.seconds(data.budget.measured_limit)}, where the baseline takes "
            f"{units.seconds(baseline.latency_s)} in the same session. Beside each measured latency stands how far it "
            "is off the table's sum"
        )
    return f"{text}."


def _latency_method(data: RunData) -> str:
    best, engine = data.finalist("best"), data.config.measure.backend
    if engine == "none" or (best is not None and best.latency_s is None):
        errors = data.summary.get("latency_errors")
        reason = errors.get("best") if isinstance(errors, dict) else None
        return f"not measured in {ENGINES[engine].title}: {reason}." if reason else "not measured."
    if best is not None and not best.latency_measured:
        return "modelled, not measured."
    run = "compiled by TVM" if engine == "tvm" else f"in {ENGINES[engine].title}"
    device = data.config.measure.remote
    if device is not None:
        run += f" for {device.target}, on a remote device of kind {device.key}"
    elif engine != "onnxruntime":
        run += " and of its ONNX export in ONNX Runtime"
    text = "measured" if best is not None else "to be measured at the end of the run"
    text += (
        f": wall-clock median at batch 1 of the network {run}, "
        f"{data.config.measure.threads} thread, interleaved in one process of their own. Its ratios are more certain "
        "than its seconds."
    )
    if data.manifest is not None:
        spreads = [
            f"{engine} {units.seconds(found.median_s)} (p10 {units.seconds(found.p10_s)}, p90 "
            f"{units.seconds(found.p90_s)}, {found.runs} runs)"
            for engine, found in data.manifest.latency.items()
        ]
        text += f" Exported network: {'; '.join(spreads)}." if spreads else ""
    return text


def metric_label(metric: str) -> str:
    """A cost as it is called."""
    names = {
        "macs": "MACs",
        "params": "parameters",
        "weight_bytes": "bytes of weights",
        "latency_s": "latency",
        "modelled_latency_s": "modelled latency",
        "energy_j": "modelled energy",
    }
    return names.get(metric, metric)
