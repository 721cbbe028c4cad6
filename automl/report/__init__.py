"""The report of a run: one self-contained HTML file, and its main chart as a picture."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element

from automl.costs.accelerator import AcceleratorUsage
from automl.report.data import read_run
from automl.report.figures import accuracy_against_cost
from automl.report.markup import tag, to_html, to_xml
from automl.report.page import build_page
from automl.report.roofline import roofline
from automl.run.directory import RunDirectory, write_atomically
from search_spaces.errors import InputError

__all__ = ["write_chart", "write_picture", "write_report", "write_roofline"]


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` of a run, finished or not; it loads nothing from anywhere.

    Returns:
        The file.

    Raises:
        InputError: the directory holds no run, or one of its files is damaged.
    """
    directory = RunDirectory(Path(run_dir))
    page = to_html(build_page(read_run(directory.path)))
    write_atomically(directory.report_file, f"<!DOCTYPE html>\n{page}\n".encode())
    return directory.report_file


def write_picture(run_dir: str | Path, path: str | Path) -> Path:
    """Write the chart of accuracy against cost as an SVG file that stands alone, for a README or a paper.

    Raises:
        InputError: the directory holds no run, or nothing was evaluated yet.
    """
    chart = accuracy_against_cost(read_run(Path(run_dir)))
    if chart is None:
        raise InputError(f"{str(run_dir)!r} holds no evaluation to draw yet")
    return write_chart(chart, Path(path))


def write_roofline(networks: Mapping[str, AcceleratorUsage], path: str | Path) -> Path:
    """Write the layers of networks on their accelerator's roofline as an SVG file; see `automl.report.roofline`.

    Raises:
        InputError: nothing of them moves off the chip.
    """
    chart = roofline(networks)
    if chart is None:
        raise InputError("the accelerator moves nothing off its chip, so there is no roofline to draw")
    return write_chart(chart, Path(path))


def write_chart(chart: Element, target: Path) -> Path:
    """A chart as an SVG file that stands alone; InputError where it cannot be written."""
    chart.set("xmlns", "http://www.w3.org/2000/svg")
    style = files("automl.report").joinpath("chart.css").read_text("utf-8")
    chart.insert(0, tag("rect", width="100%", height="100%", style="fill: var(--surface)"))
    chart.insert(0, tag("style", style))
    try:
        write_atomically(target, to_xml(chart).encode())
    except OSError as error:
        raise InputError(f"{str(target)!r} cannot be written: {error.strerror}") from None
    return target
