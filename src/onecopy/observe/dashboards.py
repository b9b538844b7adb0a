"""The Grafana dashboards as a list of panels; `python -m onecopy.observe.dashboards` writes them to data/dashboards/.

Replicas' own metrics carry the label `replica`: `/targets.json` of the status page sets it, on a cluster a relabelling
of the pod's name does. The SDK is needed to write the files, not to use them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

FOLDER = Path(__file__).parent / "data" / "dashboards"


@dataclass(frozen=True, slots=True)
class Panel:
    """queries: (PromQL, legend). A stat shows the last value, a graph its course. width: of 24 columns."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str
    stat: bool = False
    width: int = 8


def _quantiles(name: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"histogram_quantile({q}, sum by (le) (rate({name}_bucket[$__rate_interval])))", f"p{int(q * 100)}")
        for q in (0.5, 0.95, 0.99)
    )


WEIGHTS: tuple[Panel, ...] = (
    Panel("Read amplification", "none", (("onecopy_read_amplification_ratio", "{{model}}"),),
          "Bytes read from the store by the size of the checkpoint: 1 is one fetch a node, 0 a warm cache.", stat=True, width=6),
    Panel("Read from the store", "decbytes", (("onecopy_store_read_bytes_total", "{{model}}"),),
          "All that was read to fill the node cache.", stat=True, width=6),
    Panel("Private copies would have read", "decbytes", (("onecopy_private_copies_bytes", "{{model}}"),),
          "The same if each replica fetched for itself.", stat=True, width=6),
    Panel("To the first answer", "s", (('onecopy_phase_seconds{phase="total"}', "total"),),
          "From the start of the stack.", stat=True, width=6),
    Panel("Phases of the start", "s", (('onecopy_phase_seconds{phase!="total"}', "{{phase}}"),), "Some run beside each other."),
    Panel("Load of the weights by phase", "s", (('onecopy_load_seconds{phase!="total"}', "{{replica}} {{phase}}"),),
          "Each replica's last load."),
    Panel("Bytes of a load by source", "decbytes", (("onecopy_load_bytes", "{{replica}} {{source}}"),),
          "`packed` and `shared` are mapped and cost no copy."),
    Panel("Weights in memory", "decbytes", (("onecopy_weight_memory_bytes", "all replicas together"), ("onecopy_private_copies_bytes", "private copies")),
          "A page that replicas share counts once."),
    Panel("Node cache", "decbytes", (("onecopy_cache_used_bytes", "used"), ("onecopy_cache_free_bytes", "free")),
          "Of the file system under the cache."),
    Panel("Publish and fill", "percentunit", (("onecopy_step_bytes / onecopy_step_total_bytes", "{{step}}"),), "Done, of what is to be moved."),
    Panel("Replica ready after", "s", (("onecopy_replica_ready_seconds", "{{replica}}"),), "From its start to its first healthy answer."),
    Panel("Ready", "none", (("onecopy_replica_ready", "{{replica}}"),), "1: answers."),
    Panel("Trouble", "none", (("onecopy_replica_restarts_total", "restarts of {{replica}}"), ("onecopy_fill_failures_total", "failed fills")),
          "See the runbooks."),
)  # fmt: skip

SERVING: tuple[Panel, ...] = (
    Panel("Requests a second", "reqps", (("sum by (replica) (rate(vllm:request_success_total[$__rate_interval]))", "{{replica}}"),),
          "Finished, by the replicas' own count."),
    Panel("Share of the requests", "percentunit",
          (("sum by (replica) (increase(vllm:request_success_total[$__range])) / scalar(sum(increase(vllm:request_success_total[$__range])))", "{{replica}}"),),
          "Round robin gives each the same."),
    Panel("Tokens a second", "none", (("sum by (replica) (rate(vllm:generation_tokens_total[$__rate_interval]))", "{{replica}} out"),
                                      ("sum by (replica) (rate(vllm:prompt_tokens_total[$__rate_interval]))", "{{replica}} in")), "Generated, and read."),
    Panel("Time to first token", "s", _quantiles("vllm:time_to_first_token_seconds"), "All replicas."),
    Panel("Between two tokens", "s", _quantiles("vllm:inter_token_latency_seconds"), "All replicas."),
    Panel("Whole request", "s", _quantiles("vllm:e2e_request_latency_seconds"), "All replicas."),
    Panel("Running and waiting", "none", (("vllm:num_requests_running", "{{replica}} running"), ("vllm:num_requests_waiting", "{{replica}} waiting")), "Waiting above 0 for long: too few replicas."),
    Panel("KV cache in use", "percentunit", (("vllm:kv_cache_usage_perc", "{{replica}}"),), "Near 1 requests are pushed out and begin again."),
    Panel("Prefix cache hits", "percentunit",
          (("sum by (replica) (vllm:prefix_cache_hits_total) / sum by (replica) (vllm:prefix_cache_queries_total)", "{{replica}}"),),
          "Of the tokens looked up, since the replica's start."),
)  # fmt: skip

COST: tuple[Panel, ...] = (
    Panel("A disk a replica would cost", "currencyUSD", (('onecopy_storage_usd_month{kind="disk"}', "a month"),), "gp3 at list price, for this stack's bytes and replicas.", stat=True),
    Panel("One copy in S3 costs", "currencyUSD", (('onecopy_storage_usd_month{kind="own"}', "a month"),), "At rest; requests and waiting GPUs are in `onecopy cost`.", stat=True),
    Panel("Saved", "currencyUSD", (('onecopy_storage_usd_month{kind="disk"} - ignoring(kind) onecopy_storage_usd_month{kind="own"}', "a month"),), "The difference.", stat=True),
    Panel("Bytes not read from the store", "decbytes", (("onecopy_private_copies_bytes - onecopy_store_read_bytes_total", "{{model}}"),), "Against a fetch by each replica.", width=12),
    Panel("Memory not used twice", "decbytes", (("onecopy_private_copies_bytes - onecopy_weight_memory_bytes", "{{model}}"),), "Against a private copy in each replica.", width=12),
)  # fmt: skip

DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "weights": ("onecopy: weights", WEIGHTS),
    "serving": ("onecopy: serving", SERVING),
    "cost": ("onecopy: cost", COST),
}


def committed(name: str) -> str:
    """The JSON as shipped, to import into Grafana or put into a ConfigMap."""
    return resources.files("onecopy.observe").joinpath(f"data/dashboards/{name}.json").read_text()


def generate(name: str) -> str:
    from grafana_foundation_sdk.builders import dashboard as board
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    title, panels = DASHBOARDS[name]
    made = (
        board.Dashboard(title)
        .uid(f"onecopy-{name}")
        .tags(["onecopy"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .readonly()
        .with_variable(board.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for panel in panels:
        _add(made, panel)
    built: str = JSONEncoder(sort_keys=True, indent=1).encode(made.build())
    return json.dumps(json.loads(built), indent=1, sort_keys=True) + "\n"


def _add(made: Dashboard, panel: Panel) -> None:
    from grafana_foundation_sdk.builders import prometheus, stat, timeseries
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    source = DataSourceRef(type_val="prometheus", uid="${datasource}")
    widget = stat.Panel() if panel.stat else timeseries.Panel().fill_opacity(8).line_width(2).min(0)
    widget = (
        widget.title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(source)
        .height(5 if panel.stat else 8)
        .span(panel.width)
    )
    for expression, legend in panel.queries:
        widget = widget.with_target(prometheus.Dataquery().expr(expression).legend_format(legend).datasource(source))
    made.with_panel(widget)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(generate(name))


if __name__ == "__main__":
    main()
