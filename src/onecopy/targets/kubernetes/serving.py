"""What stands around the replicas: the way in from outside, and what the monitoring scrapes."""

from __future__ import annotations

from onecopy.config.kubernetes import IngressConfig
from onecopy.targets.kubernetes.stack import Object, Stack

ROUTER_SERVICE_PORT = 80
ALB_TARGETS = "alb.ingress.kubernetes.io/target-type"


def router_service(stack: Stack) -> str:
    """The chart's name for it."""
    return f"{stack.release}-router-service"


def by_node_ports(settings: IngressConfig) -> bool:
    """An AWS load balancer that is told to go to nodes needs a port on them; by default it goes to pods."""
    return settings.host is not None and settings.annotations.get(ALB_TARGETS) == "instance"


def ingress(stack: Stack) -> list[Object]:
    """Our own and not the chart's, whose TLS block needs a Secret even where the load balancer holds the certificate."""
    settings = stack.kubernetes.ingress
    if settings.host is None:
        return []
    meta = stack.metadata(stack.release, "ingress")
    annotations = dict(settings.annotations)
    if settings.class_name == "alb":
        # The reference's load balancer spoke plain HTTP to the whole internet
        annotations.setdefault("alb.ingress.kubernetes.io/listen-ports", '[{"HTTPS":443}]')
        annotations.setdefault(ALB_TARGETS, "ip")
        annotations.setdefault("alb.ingress.kubernetes.io/scheme", "internal")
        annotations.setdefault("alb.ingress.kubernetes.io/healthcheck-path", "/health")
    if annotations:
        meta["annotations"] = annotations
    backend = {"service": {"name": router_service(stack), "port": {"number": ROUTER_SERVICE_PORT}}}
    spec: Object = {
        "rules": [{"host": settings.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]
    }
    if settings.class_name:
        spec["ingressClassName"] = settings.class_name
    if settings.tls_secret:
        spec["tls"] = [{"hosts": [settings.host], "secretName": settings.tls_secret}]
    return [{"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": spec}]


def monitors(stack: Stack) -> list[Object]:
    """PodMonitors of replicas, router and agents: they need no Service beside the chart's."""
    made = [_monitor(stack, "replica", stack.namespace, "container-port")]
    made.append(_monitor(stack, "router", stack.namespace, "router-port"))
    if stack.kubernetes.delivery == "node-cache":
        made.append(_monitor(stack, "agent", stack.agent_namespace, "metrics"))
    return made


def _monitor(stack: Stack, component: str, namespace: str, port: str) -> Object:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": stack.metadata(f"{stack.release}-{component}", component, namespace=namespace),
        "spec": {
            "selector": {"matchLabels": stack.selector(component)},
            "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": "15s"}],
        },
    }
