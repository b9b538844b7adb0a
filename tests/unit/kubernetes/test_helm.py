"""A rendered chart's text as the objects that the API server will hold."""

from __future__ import annotations

from onecopy.targets.kubernetes.helm import documents

TEXT = """
apiVersion: v1
kind: List
metadata: {name: both}
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: one}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: two, namespace: there}}
---
apiVersion: v1
kind: Pod
metadata: {name: test, annotations: {helm.sh/hook: test}}
---
"""


def test_a_list_is_its_items_and_a_hook_is_none_of_the_release() -> None:
    made = [(doc["kind"], doc["metadata"]["name"], doc["metadata"]["namespace"]) for doc in documents(TEXT, "here")]
    assert made == [("ConfigMap", "one", "here"), ("ConfigMap", "two", "there")]
