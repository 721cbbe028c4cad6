"""Every config that comes along is started: the network, the space, the budgets, some evaluations of each search.

AMC's are in test_amc_configs.py, with data in the formats that they read, and so is OFA's; those of tunings in
test_tuning.py, of supernets in test_supernet_command.py.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
from latency_fakes import fake_prices

import automl
from automl.config import Config, load_config
from automl.costs.pricing import price
from automl.errors import InputError
from automl.evaluation import PolicyEvaluator
from automl.once_for_all.config import SupernetConfig
from automl.orchestration.ray_session import ray_session
from automl.orchestration.search_loop import run_search
from automl.orchestration.searches import make_search, searches, wants_prior
from automl.outlines import unreachable
from automl.problem import Problem
from automl.progress import Progress
from automl.run.priors import compute_prior, costs_for_prior
from automl.searchers import searcher_names
from automl.sweeps.config import load_sweep
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

FOLDER = Path(__file__).parents[2] / "configs"
OWN = "own_model"
SWEEP = "sweep"
CONFIGS = [
    path.stem
    for path in sorted(FOLDER.glob("*.yaml"))
    if not path.stem.startswith(("amc_", "ofa_", "tune_"))
    and not path.stem.endswith("_supernet")
    and path.stem not in (OWN, SWEEP)
]
TINY = ("baseline={epochs: 0}", "fine_tune.epochs=0", "search.seeds=[0]", "compression.calibration_images=20")


@pytest.fixture(autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all configs: they share their networks."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.getbasetemp() / "configs"))


class Here:
    """Evaluates at once, in this process."""

    def __init__(self, problem: Problem, evaluator: PolicyEvaluator) -> None:
        self.evaluations: list[Evaluation] = []
        self._problem, self._evaluator = problem, evaluator
        self._asked: dict[int, tuple[CompressionPolicy, float]] = {}

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        self._asked[number] = policy, share

    def result(self, number: int) -> Evaluation:
        policy, share = self._asked.pop(number)
        cost = price(self._problem.graph, policy, self._problem.backend)
        self.evaluations.append(self._evaluator(policy, cost, share))
        return self.evaluations[-1]

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        pass


def tiny(name: str, evaluations: int) -> Config:
    """The config with little to do."""
    config = load_config(FOLDER / f"{name}.yaml", [*TINY, f"search.evaluations={evaluations}"])
    if config.search.algorithm == "gradient":
        return load_config(config.model_dump(), ["search.options={steps: 2, batch: 8}"])
    if config.data.name != "glyphs":
        return config
    return load_config(config.model_dump(), ["data.args.images=1000"])


@pytest.mark.parametrize("name", CONFIGS)
def test_each_searches_within_its_budget(name: str, tmp_path: Path) -> None:
    """Where a table prices, its clock is made up."""
    config = tiny(name, evaluations=2)
    with fake_prices(tmp_path / "table.sqlite") as prices:
        problem = Problem.build(config, prices=prices)
        search, compressor = searches(config)[0], problem.compressor()
        known = None
        if wants_prior(config.search):
            known = compute_prior(problem, compressor, costs_for_prior(problem, problem.backend))
        searcher = make_search(config, problem.space, problem.constraints, search, problem.backend, prior=known)
        here = Here(problem, problem.evaluator(compressor))
        run_search(searcher, here, evaluations=search.evaluations, lag=config.search.lag)
    assert here.evaluations
    assert all(found.error is None for found in here.evaluations)
    assert here.evaluations[-1].violation == 0.0  # some algorithms come from above


def test_there_is_a_config_of_every_algorithm_budget_and_dimension() -> None:
    configs = [load_config(FOLDER / f"{name}.yaml") for name in CONFIGS]
    supernets = [load_config(path, kind=SupernetConfig) for path in FOLDER.glob("*_supernet.yaml")]
    configs += [supernet.of_device(name) for supernet in supernets for name in supernet.devices]
    of_a_run = {"random", "uniform", "given"}  # beside every search, and what `trimtab compress` makes
    assert {config.search.algorithm for config in configs} >= {name for name, _ in searcher_names()} - of_a_run
    budgets = {budget.metric for config in configs for budget in config.budgets}
    assert budgets >= {"latency_s", "modelled_latency_s", "energy_j", "weight_bytes", "macs", "params"}
    for dimension in ("weight_bits", "activation_bits", "sparsity", "rank", "resolution", "kernel", "keep"):
        assert any(getattr(config.space, dimension) for config in configs), dimension


@pytest.mark.slow
def test_every_cell_of_the_sweep_can_begin() -> None:
    sweep = load_sweep(FOLDER / f"{SWEEP}.yaml")
    assert len(sweep.cells) == 8
    with Progress(quiet=True) as progress:
        assert unreachable("cell", {cell.name: cell.config for cell in sweep.cells}, progress) == {}


def test_the_config_of_ones_own_network_says_what_is_missing() -> None:
    config = load_config(FOLDER / f"{OWN}.yaml")
    with pytest.raises(InputError, match="my_package"):
        Problem.outline(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_each_runs_to_its_end(name: str, tmp_path: Path) -> None:
    """With real trials and evaluators, where a latency is asked for on this machine's clock."""
    config = tiny(name, evaluations=4)
    with ray_session(config.search.evaluators):
        result = automl.search(config, tmp_path / "run")
    assert result.state == "done"
    assert (result.directory / "report.html").is_file()
