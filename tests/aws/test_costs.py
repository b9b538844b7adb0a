"""What a plan says of money, against sums worked by hand from the list of us-east-1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.aws.test_template import CASES, EXISTING, ZONES

from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError
from onecopy.cost.stack import MonthlyCost, stack_prices
from onecopy.targets.aws.costs import plan_cost
from onecopy.targets.aws.inputs import Choices, make_inputs
from onecopy.targets.aws.template import build_template


def cost(
    config: dict[str, Any],
    before: dict[str, Any] | None = None,
    *,
    ingress: tuple[bool, bool] = (False, False),
    extended: bool = False,
    region: str = "us-east-1",
) -> MonthlyCost:
    inputs = make_inputs(StackConfig.model_validate(config), Choices(zones=ZONES))
    stands = (
        build_template(make_inputs(StackConfig.model_validate(before), Choices(zones=ZONES)))
        if before is not None
        else None
    )
    return plan_cost(inputs, build_template(inputs), stands, region=region, ingress=ingress, extended=extended)


def by_price(found: MonthlyCost) -> dict[str, float | None]:
    made: dict[str, float | None] = {}
    for line in found.lines:
        made[line.price] = None if line.usd is None else (made.get(line.price) or 0) + line.usd
    return made


def test_the_defaults_by_hand() -> None:
    # 730 h: 0.10; 2 × 0.2016; 0.9776; NAT 0.045; its address 0.005. Disks 2 × 50 and 100 GB × 0.08. One key.
    found = cost({})
    assert by_price(found) == {
        "eks_hour": 73.0, "m7i.xlarge": 294.34, "g6.2xlarge": 713.65, "ebs_gp3_gb_month": 16.0,
        "nat_hour": 32.85, "public_ipv4_hour": 3.65, "kms_key_month": 1.0,
    }  # fmt: skip
    assert (found.usd, found.before_usd) == (1134.49, 0)
    assert found.warnings() == []
    assert "traffic through NAT $0.045 a GB" in found.by_use


def test_an_ingress_a_nat_a_zone_and_extended_support_by_hand() -> None:
    config = {"aws": {"network": {"nat": "per-zone"}}}
    open_to_all = {"annotations": {"alb.ingress.kubernetes.io/scheme": "internet-facing"}}
    found = cost({**config, "kubernetes": {"ingress": open_to_all}}, ingress=(False, True), extended=True)
    prices = by_price(found)
    # 0.60 × 730; 3 × 0.045 × 730; a balancer at 0.0225, and six addresses
    assert (prices["eks_extended_hour"], prices["nat_hour"], prices["alb_hour"]) == (438.0, 98.55, 16.43)
    assert prices["public_ipv4_hour"] == pytest.approx(6 * 0.005 * 730)
    inside = by_price(cost(config, ingress=(False, True)))
    assert inside["public_ipv4_hour"] == pytest.approx(3 * 0.005 * 730), "an internal one has no public address"


def test_the_change_is_told() -> None:
    found = cost({"aws": {"gpu_nodes": {"instance_types": ["g6.12xlarge"]}}}, {})
    assert found.usd - found.before_usd == pytest.approx((4.6016 - 0.9776) * 730, abs=0.01)
    assert "now $1,134.49, +$2,645.52" in found.text()
    assert "as now" in cost({}, {}).text()


def test_models_are_counted_where_their_size_is_known() -> None:
    config = {"kubernetes": {"model_bytes": "70Gi"}, "models": [{"name": "one"}, {"name": "two"}]}
    assert by_price(cost(config))["s3_gb_month"] == pytest.approx(2 * 70 * 0.023)


def test_what_is_not_known_is_said_and_never_guessed(tmp_path: Path) -> None:
    # an instance type that the list lacks, as every new one does
    found = cost({"aws": {"gpu_nodes": {"instance_types": ["p6-b400.48xlarge"]}}})
    assert by_price(found)["p6-b400.48xlarge"] is None
    assert found.usd == pytest.approx(1134.49 - 713.65)
    assert any("p6-b400.48xlarge" in text and "lacks it" in text for text in found.warnings())
    assert "without 1 that have no price" in found.text()

    block = {"capacity": "capacity-block", "capacity_reservation": "cr-0123456789abcdef0"}
    reserved = next(line for line in cost({"aws": {"gpu_nodes": block}}).lines if "GPU" in line.what)
    assert (reserved.usd, reserved.note) == (None, "paid when the block was reserved")
    spot = next(line for line in cost({"aws": {"gpu_nodes": {"capacity": "spot"}}}).lines if "GPU" in line.what)
    assert "at most this" in (spot.note or "")

    (elsewhere,) = cost({}, region="eu-west-1").warnings()
    assert "us-east-1" in elsewhere
    assert "eu-west-1 are not in the table" in elsewhere
    file = tmp_path / "prices.toml"
    file.write_text('["p6-b400.48xlarge"]\nusd = 200\nregion = "eu-west-1"\n')
    priced = cost({"aws": {"prices": str(file), "gpu_nodes": {"instance_types": ["p6-b400.48xlarge"]}}})
    assert by_price(priced)["p6-b400.48xlarge"] == 146_000
    file.write_text("[nat_hours]\nusd = 1\n")
    with pytest.raises(ConfigError, match="no price is called 'nat_hours'"):
        cost({"aws": {"prices": str(file)}})


def test_an_existing_network_and_cpu_alone_have_less() -> None:
    prices = by_price(cost({"aws": {"network": EXISTING, "gpu_nodes": {"enabled": False}}}))
    assert prices.keys() == {"eks_hour", "m7i.xlarge", "ebs_gp3_gb_month", "kms_key_month"}
    assert all(cost(config).lines for config, _ in CASES.values())


def test_every_price_has_its_source_and_a_second_text() -> None:
    found = stack_prices()
    assert len(found) > 200
    assert all(price.source and price.date for price in found.values())
    default = StackConfig().aws
    for kind in (*default.cpu_nodes.instance_types, *default.gpu_nodes.instance_types):
        assert found[kind].checked
