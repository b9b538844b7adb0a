"""The cost model against sums worked by hand from the price lists, and the rules that its declarations keep."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from onecopy.core.errors import ConfigError, UsageError
from onecopy.cost import formula
from onecopy.cost.declarations import DERIVED, INPUTS, STORAGES
from onecopy.cost.model import Row, compute, formulas
from onecopy.cost.prices import default_prices
from onecopy.cost.stack import load_prices

ARTICLE: dict[str, object] = {"model_gb": 70, "replicas": 20, "nodes": 20, "starts_per_month": 100}


def row(name: str, given: dict[str, object] | None = None, **more: object) -> Row:
    return next(r for r in compute({**(ARTICLE if given is None else given), **more}) if r.storage.name == name)


def test_a_disk_a_replica_by_hand() -> None:
    # 20 × 70 GB = 1.4 TB at $0.08; 70 × 1024 MB / 125 MB/s = 573.44 s; 100 × 573.44 / 3600 h × $4.6016 = $73.2982
    ebs = row("ebs-gp3")
    assert ebs.provisioned_gb == 1400
    assert ebs.terms == {"storage": 112, "throughput": 0, "iops": 0, "idle_gpu": Decimal("73.30")}
    assert ebs.monthly_usd == Decimal("185.30")
    assert ebs.bill_usd == 112


def test_provisioned_throughput_asks_for_iops_by_hand() -> None:
    # 875 MB/s above the baseline × $0.04 × 20; 4 IOPS a MB/s: 1,000 above 3,000 × $0.005 × 20
    fast = row("ebs-gp3-fast")
    assert (fast.terms["throughput"], fast.terms["iops"]) == (700, 100)


def test_one_fetch_a_node_by_hand() -> None:
    # 70 × $0.023; 8,960 requests of 8 MB: × 100 × $0.0000004 and × $0.000005; 71,680 MB / 2,956 MB/s = 24.249 s
    cache = row("s3-node-cache")
    assert (cache.provisioned_gb, cache.node_memory_gb) == (70, 70)
    assert row("s3-stream").node_memory_gb == 0
    assert cache.terms == {
        "storage": Decimal("1.61"),
        "put_requests": Decimal("0.04"),
        "get_requests": Decimal("0.36"),
        "idle_gpu": Decimal("3.10"),
    }


def test_replicas_of_a_node_share_its_fetch_and_its_network() -> None:
    packed: dict[str, object] = {**ARTICLE, "nodes": 5, "part_mb": 1, "starts_per_month": 1000}
    # 1,000 × 71,680 × $0.0000004, and a quarter of it
    assert row("s3-mount", packed).terms["get_requests"] == Decimal("28.67")
    assert row("s3-node-cache", packed).terms["get_requests"] == Decimal("7.17")
    # four streams on 40 Gbit/s have 1,192 MB/s each
    assert row("s3-stream", packed).load_seconds == pytest.approx(Decimal(71680) / (Decimal("4768.37158203125") / 4))


def test_a_missing_gateway_endpoint_by_hand() -> None:
    # 7,000 GB × $0.045, and two thirds of them from another zone at 2 × $0.01
    nat = row("s3-node-cache-nat")
    assert (nat.terms["nat_data"], nat.terms["cross_zone"]) == (315, Decimal("93.33"))
    assert row("s3-node-cache-nat", zones=1).terms["cross_zone"] == 0


def test_file_systems_by_hand() -> None:
    efs = row("efs-elastic").terms  # 70 × $0.30; 7,000 GB × $0.03; 70 × $0.06
    assert (efs["storage"], efs["reads"], efs["writes"]) == (21, 210, Decimal("4.20"))
    # 50 kB/s for each of 70 GB are included: 496.5 MB/s × $6
    assert row("efs-provisioned").terms["throughput"] == 2979
    assert row("fsx-lustre").provisioned_gb == 1200
    assert row("fsx-lustre", kept_revisions=20).provisioned_gb == 2400
    assert row("gcp-filestore-zonal").provisioned_gb == 1024
    # a directory bucket in each of three zones: 210 GB × $0.11; 7,000 GB × $0.0006; 3 × 70 × $0.0032
    express = row("s3-express-node-cache").terms
    assert (express["storage"], express["reads"], express["writes"]) == (
        Decimal("23.10"), Decimal("4.20"), Decimal("0.67"),
    )  # fmt: skip


def test_the_month_is_the_sum_of_its_terms_and_starts_are_paid_in_waiting() -> None:
    for one, ten in zip(compute(ARTICLE), compute({**ARTICLE, "starts_per_month": 1000}), strict=True):
        assert sum(one.terms.values()) == one.monthly_usd
        assert ten.terms["idle_gpu"] == pytest.approx(10 * one.terms["idle_gpu"], abs=Decimal("0.05"))
    assert all(r.terms["idle_gpu"] == 0 for r in compute({**ARTICLE, "starts_per_month": 0}))


def test_every_name_is_known_and_every_price_is_used() -> None:
    known = {item.name for item in INPUTS}
    for name, text in DERIVED.items():
        assert formula.names(text) <= known, name
        assert name not in known
        known.add(name)
    prices = set(default_prices())
    assert not prices & known
    read: set[str] = set()
    for storage in STORAGES:
        for text in (storage.load_seconds, *formulas(storage).values()):
            read |= formula.names(text)
        assert formula.names(storage.provisioned_gb) | formula.names(storage.node_memory_gb) <= known
    assert read <= known | prices | {"provisioned_gb", "load_seconds"}
    assert prices <= read


def test_the_language_takes_nothing_else() -> None:
    for text in ("__import__('os')", "a.b", "a ** 2", "max(a, key=b)", "a if b else c", "'text'", "[1]", "-a"):
        with pytest.raises(ValueError, match="not in the formulas' language"):
            formula.parse(text)
    assert formula.evaluate("ceil(70 * 1.1) + 1 / 4", {}) == Decimal("77.25")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replicas": 2, "nodes": 3}, "3 nodes are more than 2 replicas"),
        ({"model_gb": 0}, "more than zero, got 0"),
        ({"starts_per_month": -1}, "zero or more, got -1"),
        ({"model_gb": "NaN"}, "got NaN"),
        ({"gpus": 1}, "no input is called 'gpus'"),
        ({"zones": "three"}, "not a number: 'three'"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compute(given)


def test_own_prices_go_over_the_list(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text("[ebs_gp3_gb_month]\nusd = 0.0952\nregion = 'eu-west-1'\n")
    prices = load_prices(file)
    assert next(iter(compute(ARTICLE, prices))).terms["storage"] == Decimal("133.28")
    assert not prices["ebs_gp3_gb_month"].checked
    assert prices["s3_gb_month"] == default_prices()["s3_gb_month"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[ebs_gb]\nusd = 1", "no price is called 'ebs_gb'"),
        ("[s3_get]\nusd = -1", "s3_get.usd"),
        ("[s3_get]\nus = 1", "s3_get.us"),
        ("s3_get = 1", "s3_get is not a table"),
        ("[s3_get", "cannot read prices"),
    ],
)
def test_wrong_price_files_name_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_prices(file)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "onecopy", "cost", *args], capture_output=True, text=True, check=False)


def test_prices_of_two_regions_are_told(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        "[ebs_gp3_gb_month]\nusd = 0.0952\nregion = 'eu-west-1'\n[eks_hour]\nusd = 0.2\n['g6.2xlarge']\nusd = 1\n"
    )
    result = run("--cloud", "aws", "--prices", str(file))
    assert result.returncode == 0, "a file for `aws.prices` serves here too"
    assert "prices of 2 regions" in result.stderr
    assert "eu-west-1: ebs_gp3_gb_month" in result.stderr
    assert "regions" not in run("--cloud", "aws").stderr


def test_the_command_prints_rows() -> None:
    flags = ("--model-gb", "70", "--replicas", "20", "--nodes", "20", "--starts-per-month", "100")
    rows = json.loads(run(*flags, "--json").stdout)
    ebs = next(r for r in rows if r["storage"] == "ebs-gp3")
    assert ebs["provisioned_gb"] == 1400
    assert ebs["monthly_usd"] == 185.3
    assert round(sum(ebs["terms"].values()), 2) == 185.3
    assert {"aws", "gcp", "azure"} == {r["cloud"] for r in rows}
    lines = run(*flags, "--csv", "--cloud", "aws").stdout.splitlines()
    assert lines[0].startswith("storage,cloud,provisioned_gb,node_memory_gb,load_seconds,monthly_usd,bill_usd,storage")
    assert len(lines) == 1 + sum(storage.cloud == "aws" for storage in STORAGES)


def test_explain_shows_each_price_with_its_source() -> None:
    text = run("--explain").stdout
    for name, price in default_prices().items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {name} = "))
        assert price.source in line
        assert ("NOT CHECKED" in line) == (not price.checked)


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    result = run("--html", str(tmp_path / "no" / "page.html"))
    assert result.returncode == 2
    assert "page.html: No such file or directory" in result.stderr


def test_a_wrong_flag_is_a_usage_error() -> None:
    result = run("--replicas", "2", "--nodes", "3")
    assert (result.returncode, result.stdout) == (2, "")
    assert "3 nodes are more than 2 replicas" in result.stderr
