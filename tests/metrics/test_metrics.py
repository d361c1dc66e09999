"""The text of metrics, read by Prometheus' own Python library: as OpenMetrics, and as the older format.

tests/metrics.rs holds host.prom against what the program writes.
"""

import unittest
from pathlib import Path

from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text_format

TEXT = (Path(__file__).parent / "host.prom").read_text()


def samples(families) -> set:
    return {(sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in families for sample in family.samples}


class Metrics(unittest.TestCase):
    def test_it_is_openmetrics_and_has_types(self) -> None:
        families = list(openmetrics.text_string_to_metric_families(TEXT))
        self.assertEqual({family.type for family in families}, {"gauge", "counter"})
        self.assertTrue(all(family.documentation for family in families))
        self.assertEqual(len(families), TEXT.count("# TYPE"))

    def test_the_format_that_node_exporter_reads_has_the_same_samples(self) -> None:
        as_openmetrics = samples(openmetrics.text_string_to_metric_families(TEXT))
        self.assertEqual(as_openmetrics, samples(text_format.text_string_to_metric_families(TEXT)))
        self.assertEqual(len(as_openmetrics), sum(not line.startswith("#") for line in TEXT.splitlines()))


if __name__ == "__main__":
    unittest.main()
