"""What the best policy does to the layers of the network."""

from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.axes import Scale
from automl.report.data import RunData
from automl.report.figures import WIDTH, chart_of
from automl.report.markup import append, cell, section, tag
from search_spaces.number_formats import NumberFormat
from search_spaces.policy import LayerPolicy

ROW = 18.0


def kept_channels(data: RunData) -> Element | None:
    """A picture of the channels that each group keeps."""
    return section(
        "What each layer keeps",
        _kept_by_group(data),
        "A channel group is a set of layers whose channels can only be removed together, named after the first.",
    )


def treatments(data: RunData) -> Element | None:
    """A table of what is done beside pruning, with the columns that say something."""
    if not data.treatments:
        return None
    columns = {
        "kernel": [str(each.policy.kernel or "") for each in data.treatments],
        "rank": [_rank(each.policy) for each in data.treatments],
        "zeros": [_zeros(each.policy) for each in data.treatments],
        "weights": [_format(each.policy.weight_format) for each in data.treatments],
        "activations": [_format(each.policy.activation_format) for each in data.treatments],
    }
    columns = {title: texts for title, texts in columns.items() if any(texts)}
    table = tag("table", tag("tr", *(tag("th", title, scope="col") for title in ("layer", *columns, "stored"))))
    for index, each in enumerate(data.treatments):
        gone = tag("small", "left out") if each.policy.remove else None
        cells = [tag("td", texts[index]) for texts in columns.values()]
        share = units.ratio(each.weight_bytes, each.whole_bytes)
        stored = cell(units.size(each.weight_bytes), f"{share} of {units.size(each.whole_bytes)}")
        append(table, tag("tr", tag("th", each.name, gone, scope="row"), *cells, stored))
    return section(
        "What else is done to layers",
        tag("div", table, class_="scroll"),
        "Stored: bytes of a layer's weights, with scales and the index of zeros, after its channels were removed, "
        "beside those of the whole layer. The bias stays float32 and is not counted.",
    )


def shortened(name: str) -> str:
    """The end of a long name of a layer, which tells most."""
    return name if len(name) <= 42 else "…" + name[-41:]


def _rank(policy: LayerPolicy) -> str:
    if policy.factors is None:
        return ""
    name, rank = policy.factors
    return f"{' × '.join(map(str, rank))} {name}"


def _zeros(policy: LayerPolicy) -> str:
    return "" if policy.zeros is None else f"{units.percent(policy.zeros.share, 0)} {policy.zeros.pattern}"


def _format(format: NumberFormat | None) -> str:
    return "" if format is None else f"{format.bits} bits {format.scheme}, {format.granularity}"


def _kept_by_group(data: RunData) -> Element | None:
    """What the best policy keeps of each channel group, in the order of the network."""
    if not data.layers:
        return None
    longest = max(len(group.name) for group in data.layers)
    left = min(300.0, 24 + 6.6 * longest)
    right = WIDTH - 130
    widest = max(group.width for group in data.layers)
    chart = chart_of(WIDTH, 30 + ROW * len(data.layers) + 8, "channels kept by group")
    append(chart, tag("text", "channel group", class_="axis-title", x=left - 10, y=14, text_anchor="end"))
    append(chart, tag("text", "kept of all channels", class_="axis-title", x=left, y=14))
    x = Scale(0, widest, left, right)
    for index, group in enumerate(data.layers):
        top = 26 + index * ROW
        share = f"{group.kept} of {group.width}, {100 * group.kept / group.width:.0f} %"
        row = tag("g", tag("title", f"{group.name}: keeps {share}"))
        append(row, tag("text", shortened(group.name), class_="tick", x=left - 10, y=top + 11, text_anchor="end"))
        append(row, tag("rect", class_="width", x=left, y=top, width=x(group.width) - left, height=ROW - 5, rx=2))
        append(row, tag("rect", class_="kept", x=left, y=top, width=x(group.kept) - left, height=ROW - 5, rx=2))
        append(row, tag("text", share, class_="tick", x=x(group.width) + 8, y=top + 11))
        append(chart, row)
    return chart
