"""A price file of one region from AWS's own price list, for `onecopy cost --prices` and `aws.prices`.

The price list names products by attributes and usage types. `_RULES` says which product each of our prices is; a price
whose product is not found, or is found more than once, is told and left out: never guessed. Answers are documented in
AWS's Billing guide ("Reading the service price list file"); the query API is in few regions, us-east-1 among them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

from onecopy.core.errors import CloudError
from onecopy.cost.formula import plain
from onecopy.cost.prices import Price
from onecopy.targets.aws.session import Session, translated

API_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class _Rule:
    """usage: of the usage type, less the region's prefix (us-east-1 has none). units: the list's unit → our units in one."""

    service: str
    usage: str
    units: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    filters: Mapping[str, str] = field(default_factory=dict[str, str])
    operation: str | None = None


_GIB = {"GiBps-mo": Decimal(1024), "MiBps-Mo": Decimal(1)}

_RULES: dict[str, _Rule] = {
    "ebs_gp3_gb_month": _Rule("AmazonEC2", "EBS:VolumeUsage.gp3", filters={"volumeApiName": "gp3"}),
    "ebs_gp3_iops_month": _Rule("AmazonEC2", "EBS:VolumeP-IOPS.gp3", filters={"volumeApiName": "gp3"}),
    "ebs_gp3_mb_s_month": _Rule("AmazonEC2", "EBS:VolumeP-Throughput.gp3", _GIB, {"volumeApiName": "gp3"}),
    "nat_gb": _Rule("AmazonEC2", "NatGateway-Bytes", filters={"productFamily": "NAT Gateway"}),
    "nat_hour": _Rule("AmazonEC2", "NatGateway-Hours", filters={"productFamily": "NAT Gateway"}),
    "efs_gb_month": _Rule("AmazonEFS", "TimedStorage-ByteHrs"),
    "efs_read_gb": _Rule("AmazonEFS", "ETDataAccess-Bytes", operation="Read"),
    "efs_write_gb": _Rule("AmazonEFS", "ETDataAccess-Bytes", operation="Write"),
    "efs_provisioned_mb_s_month": _Rule("AmazonEFS", "ProvisionedTP-MiBpsHrs"),
    "s3_gb_month": _Rule("AmazonS3", "TimedStorage-ByteHrs", filters={"productFamily": "Storage"}),
    "s3_put": _Rule("AmazonS3", "Requests-Tier1", filters={"productFamily": "API Request"}),
    "s3_get": _Rule("AmazonS3", "Requests-Tier2", filters={"productFamily": "API Request"}),
    "eks_hour": _Rule("AmazonEKS", "AmazonEKS-Hours:perCluster"),
    "eks_extended_hour": _Rule("AmazonEKS", "AmazonEKS-Hours:extendedSupport"),
    "public_ipv4_hour": _Rule("AmazonVPC", "PublicIPv4:InUseAddress"),
    "alb_hour": _Rule("AWSELB", "LoadBalancerUsage", filters={"productFamily": "Load Balancer-Application"}),
    "alb_lcu_hour": _Rule("AWSELB", "LCUUsage", filters={"productFamily": "Load Balancer-Application"}),
    "kms_key_month": _Rule("awskms", "KMS-Keys"),
    "logs_gb": _Rule("AmazonCloudWatch", "DataProcessing-Bytes"),
    "logs_gb_month": _Rule("AmazonCloudWatch", "TimedStorage-ByteHrs"),
}


def _instance(kind: str) -> _Rule:
    return _Rule(
        "AmazonEC2",
        f"BoxUsage:{kind}",
        filters={
            "instanceType": kind,
            "operatingSystem": "Linux",
            "tenancy": "Shared",
            "preInstalledSw": "NA",
            "capacitystatus": "Used",
        },
    )


def fetch(
    session: Session, region: str, shipped: Mapping[str, Price], instance_types: Iterable[str]
) -> tuple[dict[str, Price], dict[str, str]]:
    """(prices by name, why the others are not among them). shipped: the list whose names and units are kept.

    Raises CloudError: no network, no credentials, `pricing:GetProducts` not permitted.
    """
    rules = {**_RULES, **{kind: _instance(kind) for kind in instance_types}}
    asked: dict[str, Sequence[dict[str, Any]]] = {}
    found: dict[str, Price] = {}
    missing: dict[str, str] = {}
    for name, rule in rules.items():
        filters = {"regionCode": region, **rule.filters}
        key = f"{rule.service} {sorted(filters.items())}"
        if key not in asked:
            asked[key] = _products(session, rule.service, filters)
        try:
            usd, dated = _price(rule, asked[key])
        except LookupError as error:
            missing[name] = str(error.args[0])
            continue
        like = shipped.get(name)
        found[name] = Price(
            usd=usd,
            unit=like.unit if like else "instance-hour, on demand, Linux",
            region=region,
            date=dated,
            source=f"AWS price list, {rule.service}",
            seen=f"AWS price list, {rule.service}, {rule.usage}, published {dated}",
        )
    if not found:
        raise CloudError(
            f"the AWS price list has none of the prices for {region}", hint="check --region: `aws ec2 describe-regions`"
        )
    return found, missing


def as_toml(prices: Mapping[str, Price]) -> str:
    """In the form that `--prices` takes."""
    blocks = [
        "# From the AWS price list: list prices in USD without tax or discount. `onecopy aws prices` writes it anew."
    ]
    for name, price in prices.items():
        texts = {key: value for key, value in price.model_dump().items() if key != "usd" and value is not None}
        lines = [f"[{json.dumps(name) if '.' in name else name}]", f"usd = {plain(price.usd)}"]
        blocks.append("\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in texts.items())]))
    return "\n\n".join(blocks) + "\n"


def _products(session: Session, service: str, filters: Mapping[str, str]) -> list[dict[str, Any]]:
    with translated("pricing:GetProducts"):
        pages = (
            session.client("pricing")
            .get_paginator("get_products")
            .paginate(
                ServiceCode=service,
                FormatVersion="aws_v1",
                Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in filters.items()],
            )
        )
        return [json.loads(text, parse_float=Decimal) for page in pages for text in page["PriceList"]]


def _price(rule: _Rule, products: Sequence[dict[str, Any]]) -> tuple[Decimal, str]:
    """(USD for one of our units, date of publication). Raises LookupError with what is in the way."""
    usage = re.compile(rf"(?:[A-Z0-9]+-)?{re.escape(rule.usage)}")
    fitting = [
        product
        for product in products
        if usage.fullmatch(product["product"]["attributes"].get("usagetype", ""))
        and rule.operation in (None, product["product"]["attributes"].get("operation"))
        and product.get("terms", {}).get("OnDemand")
    ]
    if not fitting:
        raise LookupError(f"no product {rule.service} {rule.usage}")
    prices = {_first_tier(rule, product) for product in fitting}
    if len(prices) > 1:
        raise LookupError(f"{len(fitting)} products {rule.service} {rule.usage} with different prices")
    return prices.pop(), max(str(product.get("publicationDate", "")) for product in fitting)[:10]


def _first_tier(rule: _Rule, product: dict[str, Any]) -> Decimal:
    terms = cast("dict[str, dict[str, Any]]", product["terms"]["OnDemand"])
    for term in terms.values():
        for dimension in term["priceDimensions"].values():
            if dimension.get("beginRange", "0") != "0" or "USD" not in dimension["pricePerUnit"]:
                continue
            unit = str(dimension["unit"])
            if rule.units and unit not in rule.units:
                raise LookupError(f"{rule.service} {rule.usage} is sold by {unit}, which is not known")
            return Decimal(dimension["pricePerUnit"]["USD"]) / rule.units.get(unit, Decimal(1))
    raise LookupError(f"{rule.service} {rule.usage} has no price in USD")
