"""`trimtab layers`, `profile` and `list`: what there is to decide on, and what it costs, before a search."""

import argparse
from pathlib import Path

from automl.cli_options import AddCommand, takes_config
from automl.cli_output import DONE, FAILED, complain, show
from automl.errors import InputError
from automl.listing import LISTS


def add_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    layers = add("layers", _layers, "the layers of a config's network, and what can be pruned; or what hardware takes")
    takes_config(layers)
    layers.add_argument("--backend", metavar="NAME", help="an accelerator: what each layer takes on it, and waits for")
    layers.add_argument("--policy", type=Path, metavar="FILE", help="of the network compressed as this JSON file says")
    layers.add_argument("--picture", type=Path, metavar="FILE", help="also draw the layers on its roofline, as SVG")
    takes_config(add("profile", _profile, "measure ahead the operators that a latency budget needs"))
    listing = add("list", _list, "what there is to choose from")
    listing.add_argument("what", choices=LISTS)


def _layers(options: argparse.Namespace) -> int:
    from automl.config import load_config

    config = load_config(options.config, [*options.overrides, "search.algorithm=given"])  # which needs no budget

    from automl.configured import untrained_graph
    from automl.tables import accelerator_table, layer_table, space_line
    from search_spaces.policy import CompressionPolicy

    graph = untrained_graph(config)
    compressed = None if options.policy is None else graph.apply(CompressionPolicy.load(options.policy))
    if options.backend is None:
        if options.picture is not None:
            raise InputError("a roofline is an accelerator's; name one by --backend (`trimtab list accelerators`)")
        show(*layer_table(compressed or graph), *([] if compressed else [space_line(config, graph)]))
        return DONE

    from automl.costs.accelerator import usage_of
    from automl.costs.pricing import accelerator_backend

    backend = accelerator_backend(options.backend)
    usage = usage_of(backend, compressed or graph)
    show(accelerator_table(usage))
    if options.picture is not None:
        from automl.report import write_roofline

        networks = {"compressed" if compressed else "baseline": usage}
        if compressed and not backend.supports(graph):
            networks = {"baseline": usage_of(backend, graph), **networks}
        print(write_roofline(networks, options.picture))
    return DONE


def _profile(options: argparse.Namespace) -> int:
    from automl.config import load_config

    config = load_config(options.config, options.overrides)

    from automl.costs.profile import profile
    from automl.progress import Progress
    from automl.tables import profile_table

    with Progress() as progress:
        found = profile(config, progress)
    show(profile_table(found))
    for refusal in found.refused:
        complain(str(refusal))
    return FAILED if found.refused else DONE


def _list(options: argparse.Namespace) -> int:
    from automl.listing import accelerators, entries
    from automl.tables import accelerators_table, name_table

    listed = options.what == "accelerators"
    show(accelerators_table(accelerators()) if listed else name_table(options.what, entries(options.what)))
    return DONE
