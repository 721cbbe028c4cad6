"""Weights and activations in few bits: `quantise` and `dequantise` for weights, `calibrate` for activations.

A scheme is a `Codec` in a file of its own, registered in `registry.SCHEMES` under the name that
`search_spaces.number_formats.SCHEMES` gives its bits; `automl.testing.quantisation` tests it by one subclass.
"""

from automl.compression.quantisation.activations import ActivationQuantiser, activation_quantiser
from automl.compression.quantisation.base import Choice, Codec, Quantised
from automl.compression.quantisation.bias import bias_correction
from automl.compression.quantisation.calibration import METHODS, WEIGHT_METHODS, check_method
from automl.compression.quantisation.observer import Observer, calibrate
from automl.compression.quantisation.registry import SCHEMES, dequantise, quantise
from automl.compression.quantisation.trainable import (
    LearnedActivationStep,
    LearnedClip,
    LearnedWeightStep,
    StraightThrough,
)

__all__ = [
    "METHODS",
    "SCHEMES",
    "WEIGHT_METHODS",
    "ActivationQuantiser",
    "Choice",
    "Codec",
    "LearnedActivationStep",
    "LearnedClip",
    "LearnedWeightStep",
    "Observer",
    "Quantised",
    "StraightThrough",
    "activation_quantiser",
    "bias_correction",
    "calibrate",
    "check_method",
    "dequantise",
    "quantise",
]
