"""A price file from AWS's price list: a server that answers GetProducts in the documented form, real boto3, real files.

The products are shaped like those that AWS publishes; which of them it really publishes only AWS knows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from onecopy.cost.stack import load_prices, stack_prices


def product(
    service: str, usage: str, unit: str, *tiers: str, published: str = "2026-11-20T00:00:00Z", **attributes: str
) -> str:
    sku = f"{service}{usage}".upper()
    dimensions = {
        f"{sku}.T{i}": {"unit": unit, "beginRange": "0" if i == 0 else f"{51200 * i}", "pricePerUnit": {"USD": usd}}
        for i, usd in enumerate(tiers)
    }
    return json.dumps(
        {
            "product": {"sku": sku, "attributes": {"servicecode": service, "usagetype": usage, **attributes}},
            "serviceCode": service,
            "terms": {"OnDemand": {f"{sku}.JRTC": {"priceDimensions": dimensions}}},
            "publicationDate": published,
        }
    )


CATALOGUE = {
    "AmazonEC2": [
        product("AmazonEC2", "EU-EBS:VolumeUsage.gp3", "GB-Mo", "0.0880000000", regionCode="eu-west-1", volumeApiName="gp3"),
        product("AmazonEC2", "EU-EBS:VolumeUsage.gp3.other", "GB-Mo", "9", regionCode="eu-west-1", volumeApiName="gp3"),
        product(
            "AmazonEC2", "EU-EBS:VolumeP-Throughput.gp3", "GiBps-mo", "45.0560000000", regionCode="eu-west-1", volumeApiName="gp3"
        ),
        product("AmazonEC2", "EU-EBS:VolumeP-IOPS.gp3", "IOPS-Mo", "0.0055000000", regionCode="eu-west-1", volumeApiName="gp3"),
        product(
            "AmazonEC2", "EU-NatGateway-Bytes", "GB", "0.048", regionCode="eu-west-1", productFamily="NAT Gateway"
        ),
        product(
            "AmazonEC2", "EU-BoxUsage:g6.2xlarge", "Hrs", "1.1", regionCode="eu-west-1", instanceType="g6.2xlarge",
            operatingSystem="Linux", tenancy="Shared", preInstalledSw="NA", capacitystatus="Used",
        ),
    ],
    "AmazonS3": [
        product(
            "AmazonS3", "EU-TimedStorage-ByteHrs", "GB-Mo", "0.0230", "0.0220", regionCode="eu-west-1", productFamily="Storage"
        ),
        # two products of one usage type at two prices: nobody may choose
        product("AmazonS3", "EU-Requests-Tier1", "Requests", "0.000005", regionCode="eu-west-1", productFamily="API Request"),
        product("AmazonS3", "EU-Requests-Tier1", "Requests", "0.000007", regionCode="eu-west-1", productFamily="API Request"),
    ],
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["X-Amz-Target"].endswith("GetProducts")
        assert "/us-east-1/pricing/" in self.headers["Authorization"], "the API is not in every region"
        wanted = {item["Field"]: item["Value"] for item in asked["Filters"]}
        fitting = [
            text
            for text in CATALOGUE.get(asked["ServiceCode"], [])
            if wanted.items() <= json.loads(text)["product"]["attributes"].items()
        ]
        at = int(asked.get("NextToken", "0"))
        answer: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": fitting[at : at + 2]}
        if at + 2 < len(fitting):
            answer["NextToken"] = str(at + 2)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(endpoint: str, *args: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ONECOPY_"))}
    env = {
        **kept,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_MAX_ATTEMPTS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "onecopy", *args], capture_output=True, text=True, check=False, env=env
    )  # fmt: skip


def test_a_region_s_prices_become_a_file_that_cost_takes(endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "eu-west-1.toml"
    flags = ("--region", "eu-west-1", "--instance-type", "g6.2xlarge", "--instance-type", "p9.huge")
    done = run(endpoint, "aws", "prices", *flags, "--out", str(file), "--json")
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)["missing"]
    assert "different prices" in missing["s3_put"]
    assert "no product" in missing["p9.huge"]
    assert "s3_put is left as shipped" in done.stderr

    prices = stack_prices(file)
    assert prices["ebs_gp3_gb_month"].usd == Decimal("0.088")
    assert prices["ebs_gp3_mb_s_month"].usd == Decimal("0.044"), "by the GiB/s there, by the MB/s here"
    assert prices["s3_gb_month"].usd == Decimal("0.023"), "the first tier"
    assert prices["g6.2xlarge"].usd == Decimal("1.1")
    dated = prices["nat_gb"]
    assert (dated.region, dated.date, dated.checked) == ("eu-west-1", "2026-11-20", True)
    assert load_prices(file)["s3_put"].region == "us-east-1"
    told = run(endpoint, "cost", "--cloud", "aws", "--prices", str(file))
    assert "prices of 2 regions" in told.stderr, "what was not found is never mixed in unsaid"


def test_no_way_to_the_list_is_said(tmp_path: Path) -> None:
    done = run("http://127.0.0.1:9", "aws", "prices", "--region", "eu-west-1", "--out", str(tmp_path / "x.toml"))
    assert done.returncode == 1
    assert "pricing:GetProducts" in done.stderr
    assert "hint: check the network" in done.stderr
    assert not (tmp_path / "x.toml").exists()


def test_an_unknown_region_has_no_prices(endpoint: str) -> None:
    done = run(endpoint, "aws", "prices", "--region", "mars-north-1")
    assert done.returncode == 1
    assert "none of the prices for mars-north-1" in done.stderr
