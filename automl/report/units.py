"""Figures as people read them. What is not known is a dash."""

from collections.abc import Sequence

UNKNOWN = "–"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None, digits: int = 3) -> str:
    """1234567 -> "1.23 M"."""
    if value is None:
        return UNKNOWN
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{significant(value / factor, digits)} {prefix}"
    return significant(value, digits)


def ticks(values: Sequence[float]) -> list[str]:
    """Labels of an axis, all with the same prefix and decimals: 3500000, 4000000 -> "3.5 M", "4.0 M"."""
    most = max(abs(value) for value in values)
    factor, prefix = next(((factor, f" {name}") for factor, name in _PREFIXES if most >= factor), (1.0, ""))
    for digits in range(4):
        texts = [f"{value / factor:.{digits}f}{prefix}" for value in values]
        exact = all(abs(round(value / factor, digits) - value / factor) < 1e-9 for value in values)
        if exact:
            break
    return texts


def milliseconds(values: Sequence[float]) -> list[str]:
    """Labels of an axis of seconds: 0.0002, 0.00025 -> "0.20 ms", "0.25 ms"."""
    return [f"{text} ms" for text in ticks([1e3 * value for value in values])]


def millijoules(values: Sequence[float]) -> list[str]:
    """Labels of an axis of joules."""
    return [f"{text} mJ" for text in ticks([1e3 * value for value in values])]


def size(value: float | None) -> str:
    """Bytes: 1234567 -> "1.23 MB"."""
    if value is None:
        return UNKNOWN
    text = count(value)
    return f"{text}B" if " " in text else f"{text} B"


def seconds(value: float | None) -> str:
    """0.000412 -> "0.412 ms"."""
    if value is None:
        return UNKNOWN
    if value >= 1:
        return f"{significant(value, 3)} s"
    return f"{significant(value * 1e3, 3)} ms" if value >= 1e-5 else f"{significant(value * 1e6, 3)} µs"


def joules(value: float | None) -> str:
    """0.000412 -> "0.412 mJ"."""
    return UNKNOWN if value is None else f"{seconds(value)[:-1]}J"


def duration(value: float | None) -> str:
    """Wall-clock time: 3725 -> "1 h 2 min"."""
    if value is None:
        return UNKNOWN
    minutes, rest = divmod(round(value), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(value: float | None, digits: int = 2) -> str:
    """0.98765 -> "98.77 %"."""
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def ratio(value: float | None, reference: float | None) -> str:
    """How much of the reference is left: "51 %"."""
    if value is None or not reference:
        return UNKNOWN
    return f"{100 * value / reference:.0f} %"


def significant(value: float, digits: int) -> str:
    """The value with that many significant digits, never in exponent notation, integers below 1000 whole."""
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    whole = len(str(int(abs(value))))
    if abs(value) >= 1:
        return f"{value:.{max(0, digits - whole)}f}"
    return f"{value:.{digits}f}"


def plain(value: float) -> str:
    """Four significant digits, for figures without a unit."""
    return f"{value:.4g}"
