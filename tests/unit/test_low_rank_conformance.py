"""The low-rank methods, each against the conformance kit."""

from automl.testing.factorisations import FactorisationConformance


class TestSvd(FactorisationConformance):
    method = "svd"


class TestSpatialSvd(FactorisationConformance):
    method = "spatial_svd"


class TestTucker2(FactorisationConformance):
    method = "tucker2"
