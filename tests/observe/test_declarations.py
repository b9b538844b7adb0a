"""One list of metrics: what is exported, drawn, alerted on and documented is on it, and all of it is."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.browser import debian

from onecopy.core import exposition
from onecopy.core.metrics import BY_NAME, METRICS
from onecopy.observe import dashboards
from onecopy.observe.metrics import samples
from onecopy.observe.snapshot import Cache, Load, Progress, Replica, Snapshot

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "src/onecopy/observe/data/alerts.yaml"
OURS = re.compile(r"\bonecopy_[a-z_]+\b")

FULL = Snapshot(
    "ready", model='a "model"', revision="r1", store_bytes_read=100, checkpoint_bytes=100, private_copies_bytes=200,
    weight_bytes_resident=110, cache=Cache("/c", 1, 3, 2), progress=(Progress("fill", 1, 2, True),), phases={"total": 2.0},
    replicas=(Replica("replica-0", "http://127.0.0.1:1", "ready", 1, 2.0, load=Load("packed", {"map": 0.1}, {"packed": 9})),),
    storage_usd_month={"disk": 2.0, "own": 1.0},
)  # fmt: skip


def test_every_metric_is_exported_with_its_labels() -> None:
    for metric, labels, _ in samples(FULL):
        assert len(labels) == len(metric.labels), metric.name
    stack = {metric.name for metric in METRICS if metric.by == "stack"}
    assert {metric.name for metric, _, _ in samples(FULL)} == stack
    parsed = {
        s.name: s for family in text_string_to_metric_families(exposition.text(samples(FULL))) for s in family.samples
    }
    assert set(parsed) == stack
    assert parsed["onecopy_checkpoint_bytes"].labels == {"model": 'a "model"', "revision": "r1"}
    assert parsed["onecopy_read_amplification_ratio"].value == 1


def test_what_is_not_known_has_no_sample() -> None:
    assert {m.name for m, _, _ in samples(Snapshot("starting"))} == {"onecopy_stack_up", "onecopy_fill_failures_total"}


def test_names_follow_prometheus() -> None:
    for metric in METRICS:
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        if metric.unit in ("bytes", "seconds", "ratio"):
            assert metric.unit in metric.name, metric.name


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_dashboards_are_current_and_name_known_metrics(name: str) -> None:
    assert dashboards.committed(name) == dashboards.generate(name), "run `python -m onecopy.observe.dashboards`"
    board = json.loads(dashboards.committed(name))
    assert board["uid"] == f"onecopy-{name}"
    used = {m for panel in board["panels"] for t in panel["targets"] for m in OURS.findall(t["expr"])}
    assert used <= BY_NAME.keys()


def test_alerts_name_known_metrics_and_have_a_runbook() -> None:
    text = ALERTS.read_text()
    assert set(OURS.findall(text)) <= BY_NAME.keys()
    runbooks = (ROOT / "docs/guides/runbooks.md").read_text()
    alerts = re.findall(r"alert: (\w+)", text)
    assert re.findall(r"^## (\w+)$", runbooks, re.MULTILINE) == alerts
    assert re.findall(r"runbooks\.md#(\w+)", text) == [alert.lower() for alert in alerts]


RULE_TESTS = """
rule_files: [%s]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'onecopy_read_amplification_ratio{model="m"}', values: '1 1 1 2x20'}
      - {series: 'onecopy_checkpoint_bytes{model="m",revision="r"}', values: '2e9x25'}
      - {series: 'onecopy_load_seconds{replica="slow",phase="read"}', values: '16x25'}
      - {series: 'onecopy_load_seconds{replica="slow",phase="total"}', values: '99x25'}
      - {series: 'onecopy_load_seconds{replica="quick",phase="read"}', values: '14x25'}
      - {series: 'onecopy_load_seconds{replica="quick",phase="wait"}', values: '99x25'}
      - {series: 'onecopy_fill_failures_total', values: '0x9 1x15'}
      - {series: 'onecopy_replica_restarts_total{replica="loop"}', values: '0 1 2 3 4 5 6 7 8 9 10'}
      - {series: 'onecopy_replica_restarts_total{replica="once"}', values: '0 0 1x20'}
      - {series: 'onecopy_replica_ready{replica="away"}', values: '1 1 0x20'}
      - {series: 'onecopy_replica_ready{replica="here"}', values: '1x25'}
      - {series: 'onecopy_cache_free_bytes', values: '1x25'}
      - {series: 'onecopy_cache_size_bytes', values: '10x25'}
    promql_expr_test:
      - {expr: 'count by (alertname) (ALERTS{alertstate="firing"})', eval_time: 2m, exp_samples: [{labels: '{alertname="OnecopyLoadSlow"}', value: 1}]}
      - expr: 'count by (alertname) (ALERTS{alertstate="firing"})'
        eval_time: 10m
        exp_samples:
          - {labels: '{alertname="OnecopyCacheNearFull"}', value: 1}
          - {labels: '{alertname="OnecopyFillFailing"}', value: 1}
          - {labels: '{alertname="OnecopyLoadSlow"}', value: 1}
          - {labels: '{alertname="OnecopyReadAmplification"}', value: 1}
          - {labels: '{alertname="OnecopyReplicaDown"}', value: 1}
          - {labels: '{alertname="OnecopyReplicaStartLoop"}', value: 1}
"""


def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    promtool = debian("prometheus", "promtool")
    if promtool is None:
        pytest.skip("no promtool here, and apt cannot install it")
    tests = tmp_path / "tests.yaml"
    tests.write_text(RULE_TESTS % ALERTS)
    done = subprocess.run([promtool, "test", "rules", str(tests)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
