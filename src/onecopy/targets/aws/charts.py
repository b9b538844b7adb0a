"""Charts that an EKS cluster needs beside its add-ons, by the real Helm: who makes load balancers, who offers GPUs.

With Calico the API server reaches no pod's address, so what it calls listens on the node's own: such a pod takes its
ports from the whole node (kubelet has 10250, metrics-server 10251, cert-manager 10260, the balancer's 8080 and 9443).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from onecopy.targets.aws.inputs import Inputs
from onecopy.targets.aws.nodes import GPU_TAINT, WORKLOAD
from onecopy.targets.kubernetes.releases import Release

_EKS = "https://aws.github.io/eks-charts"
_NVIDIA = "https://nvidia.github.io"
_CPU_ONLY = {WORKLOAD: "cpu"}
# Two pods that hold the same port of two nodes: a third, as a rolling update makes by itself, would wait for ever
_IN_PLACE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
_SECRETS_WEBHOOK_PORTS = {"port": 10261, "metrics": {"listen": {"port": 10262}}, "readinessProbe": {"port": 10263}}


def calico(inputs: Inputs) -> Release:
    """The pod network, VXLAN between nodes. It goes in before there is a node, and waits for none."""
    values: dict[str, Any] = {
        "installation": {
            "kubernetesProvider": "EKS",
            "cni": {"type": "Calico"},
            "calicoNetwork": {
                "bgp": "Disabled",
                "ipPools": [{"cidr": inputs.aws.cluster.pod_cidr, "encapsulation": "VXLAN"}],
            },
        },
        # Flow logs and their page: not of this stack
        "goldmane": {"enabled": False},
        "whisker": {"enabled": False},
    }
    version = inputs.aws.addons.calico_version
    release = Release(
        "calico", "tigera-operator", "tigera-operator", version, "https://docs.tigera.io/calico/charts", values, 600
    )
    return _sourced(inputs, release)


def releases(inputs: Inputs, *, region: str, outputs: Mapping[str, str]) -> Iterator[Release]:
    """What goes in once there are nodes, and before the stack's own parts."""
    for release in _wanted(inputs, region, outputs):
        yield _sourced(inputs, release)


def _sourced(inputs: Inputs, release: Release) -> Release:
    """From a mirror or a folder, where the configuration names one."""
    named: Mapping[str, str] = {**inputs.aws.addons.charts}
    source = named.get(release.chart)
    return replace(release, chart=source, repository=None) if source else release


def _wanted(inputs: Inputs, region: str, outputs: Mapping[str, str]) -> Iterator[Release]:
    addons, gpu = inputs.aws.addons, inputs.aws.gpu_nodes
    if addons.load_balancer_controller:
        values: dict[str, Any] = {
            "clusterName": inputs.name,
            "region": region,
            # Pods may not ask the instance: metadata is one hop away, and no further
            "vpcId": outputs.get("VpcId", ""),
            "nodeSelector": _CPU_ONLY,
            "hostNetwork": inputs.is_calico,
            "updateStrategy": _IN_PLACE if inputs.is_calico else {},
            "serviceAccount": _account("aws-load-balancer-controller", "LoadBalancer", inputs, outputs),
            "defaultTags": {key: value for key, value in inputs.tags.items() if ":" not in key},
            # the chart makes another certificate at each upgrade otherwise, and no plan would ever be empty
            "keepTLSSecret": True,
            # its role may not ask for them
            "enableShield": False,
            "enableWaf": False,
            "enableWafv2": False,
            # it would stand before every Service of the cluster, and while it is away none could be made
            "enableServiceMutatorWebhook": False,
        }
        version = addons.load_balancer_controller_version
        yield Release(
            "aws-load-balancer-controller", "kube-system", "aws-load-balancer-controller", version, _EKS, values, 600
        )
    if addons.external_secrets:
        values = {
            "nodeSelector": _CPU_ONLY,
            "webhook": {
                "hostNetwork": inputs.is_calico,
                "nodeSelector": _CPU_ONLY,
                **(_SECRETS_WEBHOOK_PORTS if inputs.is_calico else {}),
            },
            "certController": {"nodeSelector": _CPU_ONLY},
            "serviceAccount": _account("external-secrets", "ExternalSecrets", inputs, outputs),
        }
        repository, version = "https://charts.external-secrets.io", addons.external_secrets_version
        yield Release("external-secrets", "external-secrets", "external-secrets", version, repository, values, 600)
    if not gpu.enabled:
        return
    tolerations = [{"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}]
    shared = inputs.config.kubernetes.gpu.replicas_per_card
    # Both charts take the plugin's own file as a text, and JSON is YAML
    slicing = json.dumps(
        {"version": "v1", "sharing": {"timeSlicing": {"resources": [{"name": GPU_TAINT, "replicas": shared}]}}}
    )
    if gpu.nvidia == "operator":
        values = {
            # The image of the nodes has both already
            "driver": {"enabled": False},
            "toolkit": {"enabled": False},
            "daemonsets": {"tolerations": tolerations},
        }
        if shared > 1:
            values["devicePlugin"] = {
                "config": {"create": True, "name": "sharing", "default": "any", "data": {"any": slicing}}
            }
        yield Release(
            "gpu-operator",
            "gpu-operator",
            "gpu-operator",
            addons.gpu_operator_version,
            "https://helm.ngc.nvidia.com/nvidia",
            values,
            900,
        )
        return
    values = {"tolerations": tolerations, "nodeSelector": {WORKLOAD: "gpu"}, "affinity": None}
    if shared > 1:
        values["config"] = {"map": {"default": slicing}}
    version = addons.device_plugin_version
    yield Release(
        "nvidia-device-plugin",
        "kube-system",
        "nvidia-device-plugin",
        version,
        f"{_NVIDIA}/k8s-device-plugin",
        values,
        600,
    )


def _account(name: str, role: str, inputs: Inputs, outputs: Mapping[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {"create": True, "name": name}
    if inputs.identity == "irsa":
        made["annotations"] = {"eks.amazonaws.com/role-arn": outputs.get(f"{role}RoleArn", "")}
    return made
