"""What is asked, what follows from it, and what each storage kind costs: the only place that has a formula.

GB is the clouds' billing GB (2^30 bytes), MB is 2^20 bytes, USD a month. A start is one replica that starts on a node
where the weights are not yet. Every row also pays for the GPU that waits: `IDLE`. Prices' names are in data/prices.toml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal


@dataclass(frozen=True, slots=True)
class Input:
    """Something the user may set. low/high/step bound the slider; the command line takes anything above zero."""

    name: str
    default: Decimal
    unit: str
    label: str
    note: str
    low: Decimal
    high: Decimal
    step: Decimal = Decimal(1)
    log: bool = False
    """The slider is logarithmic."""
    main: bool = False
    """Shown first."""
    may_be_zero: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """One way to give weights to replicas. All texts but name, title and note are formulas.

    load_seconds: from a replica's start to all bytes in the node's memory. terms: name → USD a month. role: `disk` is a
    cloud's disk a replica, what the others are held against; `own` is onecopy's default there.
    """

    name: str
    cloud: str
    title: str
    note: str
    provisioned_gb: str
    load_seconds: str
    terms: dict[str, str] = field(default_factory=dict[str, str])
    role: Literal["disk", "own", "other"] = "other"
    node_memory_gb: str = "0"
    """Memory, or NVMe of the instance, that the node cache takes beside the replicas' own: no price, but it must be there."""


def _input(
    name: str, default: str, unit: str, label: str, note: str, low: str, high: str, step: str = "1", **flags: bool
) -> Input:
    return Input(name, Decimal(default), unit, label, note, Decimal(low), Decimal(high), Decimal(step), **flags)


INPUTS: tuple[Input, ...] = (
    _input(
        "model_gb", "70", "GB", "Size of the model", "one checkpoint, in billing GB (2^30 bytes)", "1", "1500", log=True, main=True
    ),
    _input("replicas", "20", "", "Replicas", "vLLM servers of this model", "1", "200", main=True),
    _input("nodes", "20", "", "Nodes", "that they run on; replicas divided by nodes share one node's cache", "1", "200", main=True),
    _input(
        "starts_per_month", "100", "a month", "Replica starts",
        "scale-ups, roll-outs, lost spot nodes: each a replica on a node that has not the weights yet",
        "0", "10000", log=True, main=True, may_be_zero=True,
    ),
    _input(
        "node_usd_hour", "4.6016", "USD", "Price of a node an hour",
        "g6.12xlarge, 4 × L4 (96 GB): the smallest of its family that holds 70 GB of weights; list price, us-east-1, seen also in instances.vantage.sh's data",
        "0", "100", "0.01", log=True, main=True, may_be_zero=True,
    ),
    _input("zones", "3", "", "Availability zones", "that the nodes are spread over", "1", "6"),
    _input("kept_revisions", "1", "", "Revisions kept", "in the shared store: the one that serves and older ones", "1", "50"),
    _input(
        "publishes_per_month", "1", "a month", "Publishes", "new revisions written to the store",
        "0", "100", may_be_zero=True,
    ),
    _input(
        "disk_headroom_percent", "0", "%", "Disk head-room",
        "room in a replica's own disk beyond the weights; 0 is the kindest to disks", "0", "200", may_be_zero=True,
    ),
    _input("starts_at_once", "1", "", "Starts at once", "they share one file system's throughput; 1 is the kindest to it", "1", "200"),
    _input("part_mb", "8", "MB", "Bytes a request", "range size of a GET, part size of a PUT", "1", "64"),
    _input("node_gbit_s", "40", "Gbit/s", "Network of a node", "g6.12xlarge: 40", "1", "400"),
    _input(
        "cache_mb_s",
        "2956",
        "MB/s",
        "Rate of a cache fill",
        "taken equal to the streaming loader's, until it is measured on real S3; --stack takes the local stack's own. On two "
        "cores against a local S3 server plain sockets read 1.50 GB/s, that loader 0.48",
        "50", "12000", "10",
    ),
    _input(
        "mount_mb_s", "1433", "MB/s", "Rate of a mount",
        "published: Mountpoint's own benchmark, one reader, 1.40 GiB/s on 100 Gbit/s; vLLM's reads through it are slower",
        "10", "12000", "10",
    ),
    _input(
        "stream_mb_s",
        "2956",
        "MB/s",
        "Rate of a streaming loader",
        "published: run:ai streamer, 3.1 GB/s from S3 on 40 Gbit/s",
        "50", "12000", "10",
    ),
    _input("ebs_mb_s", "125", "MB/s", "gp3 throughput", "what a gp3 volume has without extra pay", "125", "2000", "5"),
    _input("ebs_fast_mb_s", "1000", "MB/s", "Fast gp3 throughput", "provisioned and paid", "125", "2000", "5"),
    _input("efs_mb_s", "1500", "MB/s", "EFS elastic, one client", "AWS's documented limit of a client", "50", "1500", "10"),
    _input("efs_provisioned_mb_s", "500", "MB/s", "EFS provisioned", "reads run at three times it", "1", "3000", "10"),
    _input("hyperdisk_mb_s", "2400", "MB/s", "Hyperdisk ML throughput", "provisioned on each volume", "400", "100000", "100"),
)  # fmt: skip

# name → formula; each may use inputs and those before it
DERIVED: dict[str, str] = {
    "replicas_per_node": "replicas / nodes",
    "fills_per_month": "ceil(starts_per_month / replicas_per_node)",
    "model_mb": "model_gb * 1024",
    "disk_gb": "ceil(model_gb * (1 + disk_headroom_percent / 100))",
    "kept_gb": "kept_revisions * model_gb",
    "requests": "ceil(model_mb / part_mb)",
    "node_mb_s": "node_gbit_s * 125000000 / 1048576",
    "own_mb_s": "node_mb_s / replicas_per_node",
    "far_share": "(zones - 1) / zones",
    "waiting_usd_second": "node_usd_hour / 3600 / replicas_per_node",
}

IDLE = "starts_per_month * load_seconds * waiting_usd_second"

_FILL = "model_mb / min(cache_mb_s, node_mb_s)"
_MOUNT = "model_mb / min(mount_mb_s, own_mb_s)"
_S3 = {
    "storage": "kept_gb * s3_gb_month",
    "put_requests": "publishes_per_month * requests * s3_put",
}

STORAGES: tuple[Storage, ...] = (
    Storage(
        "ebs-gp3", "aws", "EBS gp3, a disk a replica",
        "Each replica has its own volume, filled beforehand; filling it is not counted. The instance's EBS limit neither.",
        "replicas * disk_gb", "model_mb / ebs_mb_s",
        {
            "storage": "replicas * disk_gb * ebs_gp3_gb_month",
            "throughput": "replicas * max(0, ebs_mb_s - 125) * ebs_gp3_mb_s_month",
            "iops": "replicas * max(0, ebs_mb_s * 4 - 3000) * ebs_gp3_iops_month",
        },
        role="disk",
    ),
    Storage(
        "ebs-gp3-fast", "aws", "EBS gp3, fast disks",
        "The same with provisioned throughput, and the IOPS that it asks for (4 a MB/s).",
        "replicas * disk_gb", "model_mb / ebs_fast_mb_s",
        {
            "storage": "replicas * disk_gb * ebs_gp3_gb_month",
            "throughput": "replicas * max(0, ebs_fast_mb_s - 125) * ebs_gp3_mb_s_month",
            "iops": "replicas * max(0, ebs_fast_mb_s * 4 - 3000) * ebs_gp3_iops_month",
        },
    ),
    Storage(
        "efs-elastic", "aws", "EFS, elastic throughput",
        "Read once a node: replicas of a node share the kernel's page cache. Mount target in the node's own zone.",
        "kept_gb", "model_mb / min(efs_mb_s, node_mb_s)",
        {
            "storage": "kept_gb * efs_gb_month",
            "reads": "fills_per_month * model_gb * efs_read_gb",
            "writes": "publishes_per_month * model_gb * efs_write_gb",
        },
    ),
    Storage(
        "efs-provisioned", "aws", "EFS, provisioned throughput",
        "Throughput is paid all month, used or not; 50 kB/s for each GB stored are included.",
        "kept_gb", "model_mb / min(efs_provisioned_mb_s * 3 / starts_at_once, efs_mb_s, node_mb_s)",
        {
            "storage": "kept_gb * efs_gb_month",
            "throughput": "max(0, efs_provisioned_mb_s - kept_gb * 0.05) * efs_provisioned_mb_s_month",
        },
    ),
    Storage(
        "fsx-lustre", "aws", "FSx for Lustre, 125 MB/s a TiB",
        "At least 1,200 GB, then steps of 2,400. It lives in one zone: reads from others pay for the way.",
        "max(1200, ceil((kept_gb - 1200) / 2400) * 2400)",
        "model_mb / min(provisioned_gb / 1024 * 125 / starts_at_once, node_mb_s)",
        {
            "storage": "provisioned_gb * fsx_lustre_gb_month",
            "cross_zone": "fills_per_month * model_gb * far_share * cross_zone_gb * 2",
        },
    ),
    Storage(
        "s3-mount", "aws", "S3, Mountpoint in every pod",
        "A second open of a file fetches it again, so every start reads the whole model. Gateway endpoint.",
        "kept_gb", _MOUNT,
        {**_S3, "get_requests": "starts_per_month * requests * s3_get"},
    ),
    Storage(
        "s3-stream", "aws", "S3, every replica streams",
        "Every start reads the whole model into its own memory; replicas of a node share its network. Gateway endpoint.",
        "kept_gb", "model_mb / min(stream_mb_s, own_mb_s)",
        {**_S3, "get_requests": "starts_per_month * requests * s3_get"},
    ),
    Storage(
        "s3-node-cache", "aws", "S3, one fetch a node",
        "onecopy's own: read once a node into memory or instance NVMe, which cost nothing more but must have the room: "
        "one model a node. Gateway endpoint.",
        "kept_gb", _FILL,
        {**_S3, "get_requests": "fills_per_month * requests * s3_get"},
        role="own",
        node_memory_gb="model_gb",
    ),
    Storage(
        "s3-node-cache-nat", "aws", "S3, one fetch a node, through NAT",
        "What a missing S3 gateway endpoint costs: NAT by the GB, and the way to a gateway in another zone. The gateway's "
        "hours are not counted: a private cluster has one anyway.",
        "kept_gb", _FILL,
        {
            **_S3,
            "get_requests": "fills_per_month * requests * s3_get",
            "nat_data": "fills_per_month * model_gb * nat_gb",
            "cross_zone": "fills_per_month * model_gb * far_share * cross_zone_gb * 2",
        },
        node_memory_gb="model_gb",
    ),
    Storage(
        "s3-express-node-cache", "aws", "S3 Express One Zone, one fetch a node",
        "A directory bucket in every zone. It charges by the GB read and written besides requests.",
        "kept_gb * zones", _FILL,
        {
            "storage": "kept_gb * zones * s3_express_gb_month",
            "get_requests": "fills_per_month * requests * s3_express_get",
            "reads": "fills_per_month * model_gb * s3_express_read_gb",
            "put_requests": "publishes_per_month * zones * requests * s3_express_put",
            "writes": "publishes_per_month * zones * model_gb * s3_express_write_gb",
        },
        node_memory_gb="model_gb",
    ),
    Storage(
        "gcp-pd-balanced", "gcp", "Persistent Disk balanced, a disk a replica",
        "Throughput of a disk: 140 MB/s and 0.28 a GB.",
        "replicas * disk_gb", "model_mb / (140 + disk_gb * 0.28)",
        {"storage": "replicas * disk_gb * pd_balanced_gb_month"},
        role="disk",
    ),
    Storage(
        "gcp-hyperdisk-ml", "gcp", "Hyperdisk ML, one volume a zone",
        "Read-only for many nodes of its zone; throughput is paid all month and shared by those who start at once.",
        "kept_gb * zones", "model_mb / min(hyperdisk_mb_s / starts_at_once, node_mb_s)",
        {
            "storage": "kept_gb * zones * hyperdisk_ml_gb_month",
            "throughput": "zones * hyperdisk_mb_s * hyperdisk_ml_mb_s_month",
        },
    ),
    Storage(
        "gcp-filestore-zonal", "gcp", "Filestore zonal",
        "At least 1 TiB, steps of 256 GB; read throughput 260 MB/s a TiB.",
        "max(1024, ceil(kept_gb / 256) * 256)",
        "model_mb / min(provisioned_gb / 1024 * 260 / starts_at_once, node_mb_s)",
        {"storage": "provisioned_gb * filestore_zonal_gb_month"},
    ),
    Storage(
        "gcs-fuse", "gcp", "Cloud Storage, FUSE in every pod",
        "A sidecar a pod, so every start reads the whole model.",
        "kept_gb", _MOUNT,
        {
            "storage": "kept_gb * gcs_gb_month",
            "put_requests": "publishes_per_month * requests * gcs_class_a",
            "get_requests": "starts_per_month * requests * gcs_class_b",
        },
    ),
    Storage(
        "gcs-node-cache", "gcp", "Cloud Storage, one fetch a node",
        "onecopy's own, with Private Google Access.",
        "kept_gb", _FILL,
        {
            "storage": "kept_gb * gcs_gb_month",
            "put_requests": "publishes_per_month * requests * gcs_class_a",
            "get_requests": "fills_per_month * requests * gcs_class_b",
        },
        role="own",
        node_memory_gb="model_gb",
    ),
    Storage(
        "azure-premium-ssd-v2", "azure", "Premium SSD v2, a disk a replica",
        "At its baseline of 125 MB/s.",
        "replicas * disk_gb", "model_mb / 125",
        {"storage": "replicas * disk_gb * premium_ssd_v2_gb_month"},
        role="disk",
    ),
    Storage(
        "azure-files-premium", "azure", "Azure Files premium",
        "At least 100 GB; throughput 100 MB/s and 0.1 a GB.",
        "max(100, ceil(kept_gb))", "model_mb / min((100 + provisioned_gb * 0.1) / starts_at_once, node_mb_s)",
        {"storage": "provisioned_gb * azure_files_premium_gb_month"},
    ),
    Storage(
        "azure-blobfuse", "azure", "Blob Storage, BlobFuse in every pod",
        "Every start reads the whole model.",
        "kept_gb", _MOUNT,
        {
            "storage": "kept_gb * azure_blob_gb_month",
            "put_requests": "publishes_per_month * requests * azure_blob_write",
            "get_requests": "starts_per_month * requests * azure_blob_read",
        },
    ),
    Storage(
        "azure-blob-node-cache", "azure", "Blob Storage, one fetch a node",
        "onecopy's own, with a service endpoint.",
        "kept_gb", _FILL,
        {
            "storage": "kept_gb * azure_blob_gb_month",
            "put_requests": "publishes_per_month * requests * azure_blob_write",
            "get_requests": "fills_per_month * requests * azure_blob_read",
        },
        role="own",
        node_memory_gb="model_gb",
    ),
)  # fmt: skip

CLOUDS = {"aws": "AWS", "gcp": "Google Cloud", "azure": "Azure"}

# what a term is paid for; the page has a colour for each
GROUPS: dict[str, tuple[str, ...]] = {
    "stored": ("storage",),
    "throughput": ("throughput", "iops"),
    "requests and traffic": ("get_requests", "put_requests", "reads", "writes", "nat_data", "cross_zone"),
    "GPUs that wait": ("idle_gpu",),
}
