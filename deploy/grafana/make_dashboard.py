"""Writes dashboards/saccade.json; every query in it is run by tests/deploy against a real server.

python deploy/grafana/make_dashboard.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("dashboards") / "saccade.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WHICH = 'model=~"$model",instance=~"$instance"'
WHERE = 'instance=~"$instance"'
STAGE = f"saccade_stage_seconds_bucket{{{WHICH}"

# Title, unit, width in columns of 24, and (query, legend) lines.
Panel = tuple[str, str, int, list[tuple[str, str]]]
ROWS: list[tuple[str, list[Panel]]] = [
    (
        "Requests",
        [
            (
                "Answered",
                "reqps",
                8,
                [
                    (
                        f'sum by (model) (rate(saccade_requests_total{{{WHICH},outcome="ok"}}'
                        "[$__rate_interval]))",
                        "{{model}}",
                    )
                ],
            ),
            (
                "Failed, by reason",
                "reqps",
                8,
                [
                    (
                        "sum by (outcome) (rate(saccade_requests_total"
                        f'{{{WHICH},outcome!="ok"}}[$__rate_interval]))',
                        "{{outcome}}",
                    )
                ],
            ),
            (
                "Answers by status",
                "reqps",
                8,
                [
                    (
                        "sum by (protocol, status) (rate(saccade_responses_total"
                        f"{{{WHERE}}}[$__rate_interval]))",
                        "{{protocol}} {{status}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Latency",
        [
            (
                "From the whole request to the answer",
                "s",
                12,
                [
                    (
                        f"histogram_quantile({share}, sum by (le) (rate("
                        f'{STAGE},stage="total"}}[$__rate_interval])))',
                        name,
                    )
                    for share, name in (("0.5", "p50"), ("0.9", "p90"), ("0.99", "p99"))
                ],
            ),
            (
                "Mean by stage",
                "s",
                12,
                [
                    (
                        "sum by (stage) (rate(saccade_stage_seconds_sum"
                        f'{{{WHICH},stage!="total"}}[$__rate_interval])) / sum by (stage) '
                        f'(rate(saccade_stage_seconds_count{{{WHICH},stage!="total"}}'
                        "[$__rate_interval]))",
                        "{{stage}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Queue and batches",
        [
            (
                "Waiting and running",
                "short",
                8,
                [
                    (f"sum by (model) (saccade_queue_length{{{WHICH}}})", "{{model}} waiting"),
                    (f"sum by (model) (saccade_running{{{WHICH}}})", "{{model}} running"),
                ],
            ),
            (
                "Time in the queue, p90",
                "s",
                8,
                [
                    (
                        f"histogram_quantile(0.9, sum by (model, le) (rate("
                        f'{STAGE},stage="queue"}}[$__rate_interval])))',
                        "{{model}}",
                    )
                ],
            ),
            (
                "Batch size, mean",
                "short",
                8,
                [
                    (
                        f"sum by (model) (rate(saccade_batch_size_sum{{{WHICH}}}"
                        "[$__rate_interval])) / sum by (model) (rate("
                        f"saccade_batch_size_count{{{WHICH}}}[$__rate_interval]))",
                        "{{model}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Processes and cards",
        [
            (
                "Memory",
                "bytes",
                8,
                [
                    (f"process_resident_memory_bytes{{{WHERE}}}", "front {{instance}}"),
                    (
                        f"saccade_engine_resident_memory_bytes{{{WHERE}}}",
                        "engine {{engine}} {{instance}}",
                    ),
                ],
            ),
            (
                "Processor time, cores",
                "short",
                8,
                [
                    (
                        f"rate(process_cpu_seconds_total{{{WHERE}}}[$__rate_interval])",
                        "front {{instance}}",
                    ),
                    (
                        f"rate(saccade_engine_cpu_seconds_total{{{WHERE}}}[$__rate_interval])",
                        "engine {{engine}} {{instance}}",
                    ),
                ],
            ),
            (
                "Engine processes started again",
                "short",
                8,
                [(f"increase(saccade_engine_restarts_total{{{WHERE}}}[5m])", "{{instance}}")],
            ),
            (
                "GPU memory",
                "bytes",
                8,
                [(f"saccade_gpu_memory_used_bytes{{{WHERE}}}", "GPU {{gpu}} {{instance}}")],
            ),
            (
                "GPU busy",
                "percentunit",
                8,
                [(f"saccade_gpu_busy_ratio{{{WHERE}}}", "GPU {{gpu}} {{instance}}")],
            ),
            (
                "Connections",
                "short",
                8,
                [
                    (
                        f"sum by (protocol) (saccade_connections{{{WHERE}}})",
                        "{{protocol}}",
                    )
                ],
            ),
        ],
    ),
]


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice at the top of the dashboard."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def panel(number: int, place: dict[str, int], made: Panel) -> dict[str, Any]:
    """One chart."""
    title, unit, _, lines = made
    return {
        "id": number,
        "title": title,
        "type": "timeseries",
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {"lineWidth": 2, "fillOpacity": 8, "showPoints": "never"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(65 + i), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for i, (query, legend) in enumerate(lines)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "gridPos": place,
                "collapsed": False,
                "panels": [],
            }
        )
        y, x = y + 1, 0
        for made in row:
            if x + made[2] > 24:
                x, y = 0, y + 8
            panels.append(panel(len(panels) + 1, {"x": x, "y": y, "w": made[2], "h": 8}, made))
            x += made[2]
        y += 8
    return {
        "uid": "saccade",
        "title": "saccade",
        "tags": ["saccade"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
                },
                variable("instance", "Instance", "label_values(saccade_build_info, instance)"),
                variable(
                    "model",
                    "Model",
                    'label_values(saccade_model_ready{instance=~"$instance"}, model)',
                ),
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=1) + "\n")
