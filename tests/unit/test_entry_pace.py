"""Latencies measured at different paces of the processor, brought to one."""

import pytest

from backends.latency_table import DeviceKey, Entry, LatencyTable

DEVICE = DeviceKey("tvm", "a processor", "x86-64", 1, "1", "rules")


def entry(seconds, pace_s):
    return Entry(seconds, seconds, seconds, 10, 0.0, "cafe", "conv2d", 1.0, 1.0, pace_s)


def test_a_table_speaks_at_the_pace_of_its_first_entry(tmp_path):
    path = tmp_path / "table.sqlite"
    with LatencyTable(path, DEVICE) as table:
        table.publish("first", entry(1e-6, 2e-6))
        stands = table.publish("slower", entry(3e-6, 4e-6))  # the processor ran at half its speed then
        assert stands.latency_s == pytest.approx(1.5e-6)
    with LatencyTable(path, DEVICE) as again:
        known = again.get(["first", "slower"])
        assert again.pace_s == 2e-6
        assert [known[name].latency_s for name in ("first", "slower")] == pytest.approx([1e-6, 1.5e-6])


def test_an_entry_without_a_pace_stands_as_it_is(tmp_path):
    with LatencyTable(tmp_path / "table.sqlite", DEVICE) as table:
        assert table.publish("unknown", entry(1e-6, 0.0)).latency_s == 1e-6
        assert table.publish("known", entry(1e-6, 2e-6)).latency_s == 1e-6
        assert table.publish("later", entry(1e-6, 1e-6)).latency_s == pytest.approx(2e-6)


def test_a_pace_is_a_positive_number():
    with pytest.raises(ValueError, match="pace_s"):
        entry(1e-6, -1.0)
