"""Write the Grafana dashboard of examples/monitoring to stdout.

Grafana's own types build it, so that Grafana 10.1 and later can import it. Before anything is written, every query is
parsed by promtool, and every metric and label in it has to be one that lbagent writes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import Dashboard as Model
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from lbagent import metrics
from lbagent.roles.model import Pair

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HERE = 'job=~"$job", instance=~"$instance"'
"""The matchers of every selector: the load balancers that are chosen at the top of the dashboard."""

TARGET_LABELS = frozenset({"job", "instance"})
"""Labels that Prometheus adds."""

VARIABLES = {"$job": "lb", "$instance": "lb01", "$__rate_interval": "5m", "$__range": "1h"}
"""Values of Grafana's variables for which promtool parses the queries."""

GREEN, ORANGE, RED = "green", "orange", "red"


def query(expression: str, legend: str = "{{instance}}", ref: str = "A") -> prometheus.Dataquery:
    """Return a query; HERE is added to each selector of a metric of lbagent."""
    full = re.sub(r"\b(lbagent_\w+)(?:\{([^}]*)\})?", _select, expression)
    return prometheus.Dataquery().expr(full).legend_format(legend).ref_id(ref).datasource(SOURCE)


def _select(found: re.Match[str]) -> str:
    matchers = ", ".join(filter(None, (HERE, found[2])))
    return f"{found[1]}{{{matchers}}}"


def now(title: str, words: str, expression: str, unit: str, limits: Sequence[tuple[float, str]]) -> stat.Panel:
    """Return a panel with one number per load balancer, coloured by its limits."""
    steps = [Threshold(value=None, color=GREEN), *(Threshold(value=limit, color=colour) for limit, colour in limits)]
    thresholds = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    panel = stat.Panel().title(title).description(words).datasource(SOURCE).unit(unit).thresholds(thresholds)
    return (
        panel.no_value("-")
        .graph_mode(BigValueGraphMode.NONE)
        .height(4)
        .span(6)
        .with_target(query(expression).instant())
    )


def over_time(title: str, words: str, unit: str, *queries: prometheus.Dataquery, span: int = 12) -> timeseries.Panel:
    """Return a panel with a line per series."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    legend = legend.show_legend(True)  # noqa: FBT003  # the builder's own
    panel = timeseries.Panel().title(title).description(words).datasource(SOURCE).unit(unit).min(0)
    panel = panel.legend(legend).height(8).span(span).fill_opacity(10)
    for one in queries:
        panel = panel.with_target(one)
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Return the panel with its lines stacked."""
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)


def steps_over_time(title: str, words: str, one: prometheus.Dataquery) -> statetimeline.Panel:
    """Return a panel with a bar per load balancer, whose colour changes with the value."""
    panel = statetimeline.Panel().title(title).description(words).datasource(SOURCE).with_target(one)
    return panel.show_value(VisibilityMode.AUTO).height(8).span(12)


def quantiles(metric: str) -> tuple[prometheus.Dataquery, ...]:
    """Return the queries for the median and the 95th percentile of a histogram."""
    return tuple(
        query(
            f"histogram_quantile({share}, sum by (le, instance) (rate({metric}_bucket[$__rate_interval])))",
            f"{{{{instance}}}} {name}",
            ref,
        )
        for share, name, ref in ((0.5, "median", "A"), (0.95, "95 %", "B"))
    )


def list_pauses() -> table.Panel:
    """Return the table of paused nodes, the longest pause first."""
    fields = {"excludeByName": {"Time": True, "job": True}, "renameByName": {"Value": "paused for", "node": "node"}}
    order = {"fields": {}, "sort": [{"field": "paused for", "desc": True}]}
    oldest = query("time() - lbagent_pause_start_timestamp_seconds").instant().format(PromQueryFormat.TABLE)
    return (
        table.Panel()
        .title("Paused nodes")
        .description("The oldest pauses. A pause by the tag lbagent=paused has no start and is not listed.")
        .datasource(SOURCE)
        .unit("dtdurations")
        .show_header(True)  # noqa: FBT003  # the builder's own
        .with_target(oldest)
        .with_transformation(DataTransformerConfig(id_val="organize", options=fields))
        .with_transformation(DataTransformerConfig(id_val="sortBy", options=order))
        .height(8)
        .span(12)
    )


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    made = dashboard.Dashboard("lbagent").uid("lbagent").tags(["haproxy", "lbagent", "serf"]).refresh("30s")
    made = made.time("now-6h", "now").timezone("browser").with_variable(source)
    for name, labels in (("job", "lbagent_build_info"), ("instance", 'lbagent_build_info{job=~"$job"}')):
        made = made.with_variable(
            dashboard.QueryVariable(name)
            .label({"job": "Job", "instance": "Load balancer"}[name])
            .datasource(SOURCE)
            .query(f"label_values({labels}, {name})")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)  # noqa: FBT003  # the builder's own
            .include_all(True)  # noqa: FBT003  # the builder's own
            .all_value(".+")
            .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
        )
    for title, panels in rows():
        made = made.with_row(dashboard.Row(title))
        for panel in panels:
            made = made.with_panel(panel)
    return made


def rows() -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the title and the panels of each row."""
    yield (
        "Now",
        (
            now(
                "Daemon: last run",
                "Age of the last run of `lbagent watch`. It makes at least one per minute.",
                "time() - lbagent_daemon_heartbeat_timestamp_seconds",
                "s",
                ((120, ORANGE), (300, RED)),
            ),
            now(
                "Last successful sync",
                "Age of the last sync with Serf's member list.",
                "time() - lbagent_last_sync_timestamp_seconds",
                "s",
                ((180, ORANGE), (600, RED)),
            ),
            now(
                "Waiting events", "Events that are not applied yet.", "lbagent_pending_events", "short", ((1, ORANGE),)
            ),
            now(
                "Services without a server",
                "Services whose servers are all paused, failed or quarantined.",
                "lbagent_services_without_server",
                "short",
                ((1, RED),),
            ),
            now(
                "Quarantined nodes",
                "Nodes whose lines HAProxy refuses.",
                "lbagent_quarantined_nodes",
                "short",
                ((1, ORANGE),),
            ),
            now(
                "Blocked removals",
                "Lines whose removal the safety guard blocks.",
                "lbagent_blocked_removals",
                "short",
                ((1, ORANGE),),
            ),
            now(
                "Different load balancers",
                "Other load balancers that have other managed lines.",
                "lbagent_peers_differing",
                "short",
                ((1, RED),),
            ),
            now("Paused nodes", "Alive and failed nodes that are paused.", "lbagent_paused_nodes", "short", ()),
        ),
    )
    yield (
        "Servers",
        (
            stacked(
                over_time(
                    "Servers by state",
                    "Managed lines of all services.",
                    "short",
                    query("sum by (instance, state) (lbagent_servers)", "{{instance}} {{state}}"),
                )
            ),
            over_time(
                "Servers in, by service",
                "Servers that are neither paused nor failed nor quarantined.",
                "short",
                query(
                    'lbagent_servers{state="in"}',
                    "{{instance}} {{section}}/{{service}}",
                ),
            ),
            over_time(
                "Members by status",
                "All nodes that lbagent knows, by status.",
                "short",
                query("lbagent_members", "{{instance}} {{status}}"),
            ),
            list_pauses(),
        ),
    )
    yield (
        "Runs and reloads",
        (
            stacked(
                over_time(
                    "Runs by verdict",
                    "Runs per minute.",
                    "short",
                    query(
                        "60 * sum by (instance, verdict) (rate(lbagent_runs_total[$__rate_interval]))",
                        "{{instance}} {{verdict}}",
                    ),
                )
            ),
            steps_over_time(
                "Exit status of the last run",
                "0 done, 2 roles.yml refused, 3 removals blocked, 4 refused, 5 rolled back, 75 not confirmed.",
                query("lbagent_last_run_exit_status"),
            ),
            over_time("Duration of runs", "From the lock to the end.", "s", *quantiles("lbagent_run_duration_seconds")),
            over_time(
                "Duration of reloads",
                "From the request to the confirmation.",
                "s",
                *quantiles("lbagent_reload_duration_seconds"),
            ),
            over_time(
                "Reloads",
                "Reloads per hour; most changes need none.",
                "short",
                query("3600 * rate(lbagent_reload_duration_seconds_count[$__rate_interval])"),
            ),
            over_time(
                "Old HAProxy workers",
                "Workers from before a reload that still serve their last connections.",
                "short",
                query("lbagent_old_workers"),
            ),
        ),
    )
    yield (
        "The pair",
        (
            over_time(
                "Other load balancers",
                "Those in Serf's list, and those that answer.",
                "short",
                query("lbagent_peers_expected", "{{instance}} expects"),
                query("lbagent_peers_seen", "{{instance}} sees", "B"),
            ),
            steps_over_time(
                "Managed lines",
                "Equal numbers mean equal managed lines. The distance between two numbers has no meaning.",
                query("lbagent_managed_lines_digest"),
            ),
        ),
    )


def list_queries(made: Any) -> list[str]:  # noqa: ANN401  # JSON
    """Return the PromQL of every panel of a dashboard in JSON."""
    return [target["expr"] for panel in made["panels"] for target in panel.get("targets", ())]


def find_mistakes(queries: Sequence[str]) -> list[str]:
    """Return a sentence for each metric or label in the queries that lbagent does not write."""
    known = list_known_labels()
    found = []
    for text in queries:
        for name, matchers in re.findall(r"\b(lbagent_\w+)(?:\{([^}]*)\})?", text):
            if name not in known:
                found.append(f"{name}: not a metric of lbagent: {text}")
                continue
            allowed = known[name] | TARGET_LABELS
            labels = {*re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers), *_list_grouping_labels(text)}
            found += [f"{name} has no label {label}: {text}" for label in sorted(labels - allowed)]
    return found


def list_known_labels() -> dict[str, frozenset[str]]:
    """Return the labels of every series that lbagent writes, by name."""
    last = metrics.Last(0, runs={"applied": 1}, ended={"applied": 1})
    pair = Pair("lb", "iis")
    numbers = metrics.Numbers("1", 0, last, {pair: {"in": 1}}, {"alive": 1}, pauses={"web01": 0})
    text = metrics.format_metrics(numbers).decode()
    known = {name: frozenset[str]() for name in re.findall(r"^# TYPE (\w+) (?:gauge|counter)$", text, re.MULTILINE)}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        known[name] = frozenset(re.findall(r'(\w+)="', labels))
    return known


def _list_grouping_labels(text: str) -> list[str]:
    groups = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", text)
    return [label.strip() for group in groups for label in group.split(",")]


def parse_with_promtool(queries: Sequence[str]) -> str:
    """Return what promtool reports about queries that it cannot parse; empty if it parses all."""
    rules = []
    for number, text in enumerate(queries):
        for name, value in VARIABLES.items():
            text = text.replace(name, value)  # noqa: PLW2901
        rules.append({"record": f"query:{number}", "expr": text})
    groups = json.dumps({"groups": [{"name": "dashboard", "rules": rules}]})  # JSON is YAML
    command = ["promtool", "check", "rules", "/dev/stdin"]
    done = subprocess.run(command, input=groups, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def format_dashboard() -> str:
    """Return the dashboard as JSON. Raises ValueError where a query uses what lbagent does not write."""
    text = json.dumps(build().build(), cls=JSONEncoder, indent=2) + "\n"
    made = json.loads(text)
    for number, panel in enumerate(made["panels"], 1):
        panel["id"] = number
    if mistakes := find_mistakes(list_queries(made)):
        raise ValueError("\n".join(mistakes))
    Model.from_json(made)  # Grafana's types accept what they are to read back
    return json.dumps(made, indent=2) + "\n"


if __name__ == "__main__":
    written = format_dashboard()
    if problem := parse_with_promtool(list_queries(json.loads(written))):
        sys.exit(problem)
    sys.stdout.write(written)
