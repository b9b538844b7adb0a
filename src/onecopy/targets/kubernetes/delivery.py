"""How the weights reach the replicas: the publish job, the agent on the nodes, and the volumes that replicas mount.

A volume's name holds the revision: a new revision is a new volume, never a retained one that cannot bind again.
With node-cache the volume is `local`: the kubelet refuses to mount it until the agent has published the folder, so that
no replica sees a revision that is not whole, and the scheduler places replicas only where an agent runs.
"""

from __future__ import annotations

import hashlib
import json

from onecopy.storage.layout import revision_prefix
from onecopy.targets.kubernetes import access
from onecopy.targets.kubernetes.identity import CA_MOUNT, HUB_TOKEN_ENV, PodAccess, pod_access, principal
from onecopy.targets.kubernetes.sizing import quantity
from onecopy.targets.kubernetes.stack import (
    LABEL_MODEL,
    LABEL_REVISION,
    NON_ROOT,
    Object,
    ServedModel,
    Stack,
    shorten,
)

CACHE_MOUNT = "/var/cache/onecopy"
CAPACITY = "1Gi"
"""Required by the API, read by no driver, and fixed: a claim's size cannot be changed once it is bound."""
_GPU_LABELS: tuple[tuple[str, str | None], ...] = (
    ("nvidia.com/gpu.present", "true"),  # GPU feature discovery, GPU operator
    ("cloud.google.com/gke-accelerator", None),  # GKE
    ("kubernetes.azure.com/accelerator", None),  # AKS
    ("eks.amazonaws.com/instance-gpu-name", None),  # EKS Auto Mode
    ("onecopy.dev/replicas", "true"),  # for nodes that have none of them
)


def node_terms(stack: Stack) -> list[Object]:
    """Node selector terms (any of them) for replicas and agents alike."""
    selector = stack.kubernetes.node_selector
    if selector:
        return [
            {"matchExpressions": [{"key": k, "operator": "In", "values": [v]} for k, v in sorted(selector.items())]}
        ]
    if stack.kubernetes.gpu.count == 0:
        return [{"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}]
    return [
        {
            "matchExpressions": [
                {"key": key, "operator": "In", "values": [value]} if value else {"key": key, "operator": "Exists"}
            ]
        }
        for key, value in _GPU_LABELS
    ]


def tolerations(stack: Stack) -> list[Object]:
    given = [t.model_dump(exclude_none=True) for t in stack.kubernetes.tolerations]
    if stack.kubernetes.gpu.count:
        # Named, although a GPU request may bring it: replicas without one would stay Pending on a tainted node
        given.insert(0, {"key": stack.kubernetes.gpu.resource, "operator": "Exists", "effect": "NoSchedule"})
    return given


def publish_job(stack: Stack, model: ServedModel) -> Object:
    """Publishes inside the cluster. Its name holds a digest of its spec: Jobs are immutable, a change is a new Job.

    The result (`--json`) becomes the container's termination message: what apply learns the revision from, with no
    access to the store.
    """
    who = pod_access(stack, "publish", "writer")
    command = [
        "onecopy", "model", "publish", model.config.source,
        "--name", model.name, "--ref", model.config.revision, "--store", str(stack.store), "--json",
    ]  # fmt: skip
    env: list[Object] = [*who.env, {"name": "HOME", "value": "/tmp"}]  # noqa: S108 - in the container
    if stack.kubernetes.hub_secret:
        key: Object = {"name": stack.kubernetes.hub_secret, "key": "token"}
        env.append({"name": HUB_TOKEN_ENV, "valueFrom": {"secretKeyRef": key}})
    container: Object = {
        "name": "publish",
        "image": stack.kubernetes.images.onecopy,
        "command": ["/bin/sh", "-c", 'exec "$@" > /dev/termination-log', "publish"],
        "args": command,
        "env": env,
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {**access.CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *who.mounts],  # noqa: S108
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    _finish(stack, container, who)
    spec: Object = {
        "backoffLimit": 4,
        "activeDeadlineSeconds": stack.sizing.publish_deadline,
        "template": {
            "metadata": {"labels": {**stack.labels("publish", **{LABEL_MODEL: model.slug}), **who.labels}},
            "spec": {
                "serviceAccountName": who.service_account,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "restartPolicy": "Never",
                "securityContext": {**access.POD_SECURITY, "fsGroup": NON_ROOT},
                "containers": [container],
                "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}, *_volumes(stack, who)],
            },
        },
    }
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    meta = stack.metadata(f"{shorten(f'{stack.release}-publish-{model.slug}', 54)}-{digest}", "publish")
    meta["labels"][LABEL_MODEL] = model.slug
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


def agent(stack: Stack) -> Object:
    """The only pod that may read the store. Ready when every revision that it was told of is on its node."""
    who = pod_access(stack, "agent", "reader")
    sizing = stack.sizing
    # Sorted: a roll back is the same set, so that no agent restarts for it
    wanted = [f"{model.name}@{revision}" for model in stack.models for revision in sorted(model.kept)]
    container: Object = {
        "name": "agent",
        "image": stack.kubernetes.images.onecopy,
        "command": ["onecopy", "cache", "agent"],
        "args": agent_args(stack, wanted),
        "env": [*who.env, {"name": "HOME", "value": "/tmp"}],  # noqa: S108
        "ports": [{"name": "metrics", "containerPort": access.AGENT_PORT}],
        "resources": {
            "requests": {"cpu": "1", "memory": quantity(sizing.agent_memory)},
            "limits": {"memory": quantity(sizing.agent_memory)},
        },
        # uid 0 without a single capability: it owns the folder that the kubelet made, and can do no more than that
        "securityContext": {**access.CONTAINER_SECURITY, "readOnlyRootFilesystem": True},
        "startupProbe": {
            "httpGet": {"path": "/healthz", "port": "metrics"},
            "periodSeconds": 2,
            "failureThreshold": 60,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "metrics"},
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "metrics"}, "periodSeconds": 2},
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE_MOUNT},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            *who.mounts,
        ],
    }
    _finish(stack, container, who)
    pod: Object = {
        "serviceAccountName": who.service_account,
        "automountServiceAccountToken": False,
        # A Service that is called onecopy-… would become ONECOPY_… variables, which are settings here
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {"runAsUser": 0, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}},
        "affinity": node_affinity(stack),
        "tolerations": tolerations(stack),
        "containers": [container],
        "volumes": [
            {"name": "cache", "hostPath": {"path": stack.cache_dir, "type": "DirectoryOrCreate"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            *_volumes(stack, who),
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": stack.metadata(f"{stack.release}-agent", "agent", namespace=stack.agent_namespace),
        "spec": {
            "selector": {"matchLabels": stack.selector("agent")},
            # All nodes at once: a new revision is fetched beside the old, nothing that runs is touched
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {
                "metadata": {
                    "labels": {**stack.labels("agent"), **who.labels},
                    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(access.AGENT_PORT)},
                },
                "spec": pod,
            },
        },
    }


def agent_args(stack: Stack, wanted: list[str]) -> list[str]:
    return [
        *wanted,
        "--store", str(stack.store),
        "--dir", CACHE_MOUNT,
        "--host", "0.0.0.0",  # noqa: S104 - in a pod, behind a network policy
        "--port", str(access.AGENT_PORT),
        "--max-size", quantity(stack.sizing.cache_bytes),
    ]  # fmt: skip


def node_affinity(stack: Stack) -> Object:
    return {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": node_terms(stack)}}
    }


def volume_name(stack: Stack, model: ServedModel, revision: str) -> str:
    """Of the volume and its claim: unique in the cluster for stack, model, revision and delivery."""
    stem = shorten(f"{stack.stack_label.replace('.', '-')}-{model.slug}", 100)
    return f"{stem}-{revision}-{stack.kubernetes.delivery}"


def volumes(stack: Stack) -> list[Object]:
    """Volume and claim of each revision that is served or kept for a roll back. None for `stream`."""
    if stack.kubernetes.delivery == "stream":
        return []
    return [
        made
        for model in stack.models
        for revision in model.kept
        for made in (_volume(stack, model, revision), _claim(stack, model, revision))
    ]


def _volume(stack: Stack, model: ServedModel, revision: str) -> Object:
    name = volume_name(stack, model, revision)
    source: Object
    if stack.kubernetes.delivery == "node-cache":
        source = {
            "local": {"path": f"{stack.cache_dir}/{model.name}/{revision}"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": node_terms(stack)}},
        }
    else:
        prefix = "/".join(part for part in (stack.store.prefix, revision_prefix(model.name, revision)) if part) + "/"
        source = {"aws": _mountpoint, "gcp": _gcsfuse, "azure": _blobfuse}[stack.kubernetes.cloud](stack, name, prefix)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": stack.metadata(
            name, "volume", namespace=None, **{LABEL_MODEL: model.slug, LABEL_REVISION: revision}
        ),
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "capacity": {"storage": CAPACITY},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": stack.namespace,
                "name": name,
            },
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "volumeMode": "Filesystem",
            **source,
        },
    }


def _claim(stack: Stack, model: ServedModel, revision: str) -> Object:
    name = volume_name(stack, model, revision)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": stack.metadata(name, "volume", **{LABEL_MODEL: model.slug, LABEL_REVISION: revision}),
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": {"storage": CAPACITY}},
            "storageClassName": "",
            "volumeMode": "Filesystem",
            "volumeName": name,
        },
    }


def _mountpoint(stack: Stack, name: str, prefix: str) -> Object:
    """Mountpoint S3 CSI v2."""
    region = stack.config.store.region
    options = [
        f"prefix {prefix}",
        "allow-other",
        f"uid={NON_ROOT}",
        f"gid={NON_ROOT}",
        "metadata-ttl indefinite",  # a revision never changes
        *([f"region {region}"] if region else []),
        *([f"endpoint-url {stack.config.store.endpoint}"] if stack.config.store.endpoint else []),
    ]
    attributes = {
        "bucketName": stack.store.bucket,
        # The driver's own account reads for all pods of the stack: `outputs` names it
        "authenticationSource": "driver",
    }
    if stack.kubernetes.cache.medium == "memory":
        attributes |= {
            "cache": "emptyDir",
            "cacheEmptyDirMedium": "Memory",
            "cacheEmptyDirSizeLimit": quantity(stack.sizing.cache_bytes),
        }
    return {
        "mountOptions": options,
        "csi": {"driver": "s3.csi.aws.com", "volumeHandle": name, "volumeAttributes": attributes},
    }


def _gcsfuse(stack: Stack, name: str, prefix: str) -> Object:
    del name  # the handle is the bucket
    return {
        "mountOptions": [
            f"only-dir={prefix.rstrip('/')}",
            "implicit-dirs",
            "read_ahead_kb=1024",
            "metadata-cache:ttl-secs:-1",
            "file-cache:max-size-mb:-1",
            "file-cache:enable-parallel-downloads:true",
            f"uid={NON_ROOT}",
            f"gid={NON_ROOT}",
        ],
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "readOnly": True,
            "volumeHandle": stack.store.bucket,
            "volumeAttributes": {"skipCSIBucketAccessCheck": "true", "gcsfuseMetadataPrefetchOnMount": "true"},
        },
    }


def _blobfuse(stack: Stack, name: str, prefix: str) -> Object:
    group, account = stack.kubernetes.azure_resource_group or "", stack.store.account or ""
    attributes = {
        # v1, the driver's default, is at its end of support
        "protocol": "fuse2",
        "storageAccount": account,
        "containerName": stack.store.bucket,
        "resourceGroup": group,
    }
    source: Object = {"driver": "blob.csi.azure.com", "readOnly": True, "volumeAttributes": attributes}
    if stack.identity == "workload-identity":
        attributes |= {"clientID": principal(stack, "reader") or "", "mountWithWorkloadIdentityToken": "true"}
    else:
        secret = principal(stack, "reader") or ""
        source["nodeStageSecretRef"] = {"name": secret, "namespace": stack.namespace}
    # The driver keys its mounts by the handle: the volume's name makes it one of our own
    source["volumeHandle"] = f"{group}#{account}#{stack.store.bucket}#{name}"
    return {
        "mountOptions": [
            "-o ro",
            "-o allow_other",
            f"--subdirectory={prefix.rstrip('/')}",
            "--file-cache-timeout-in-seconds=120",
            "--use-attr-cache=true",
        ],
        "csi": source,
    }


def _finish(stack: Stack, container: Object, who: PodAccess) -> None:
    if who.env_from:
        container["envFrom"] = list(who.env_from)
    if stack.config.store.ca_file:
        container["volumeMounts"].append({"name": "store-ca", "mountPath": CA_MOUNT, "readOnly": True})


def _volumes(stack: Stack, who: PodAccess) -> list[Object]:
    made = list(who.volumes)
    if stack.config.store.ca_file:
        made.append({"name": "store-ca", "configMap": {"name": f"{stack.release}-store-ca"}})
    return made
