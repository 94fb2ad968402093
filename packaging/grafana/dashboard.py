#!/usr/bin/env python3
"""Writes packetparamedic.json, the Grafana dashboard for the metrics of `packetparamedic serve`, beside this file.

    packaging/grafana/dashboard.py          # after a change of this file
    packaging/grafana/dashboard.py --check  # fails if packetparamedic.json is not what this file makes

The form is that of Grafana's dashboard JSON model, schema version 39 (Grafana 10.4 and later):
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

import json
import sys
from pathlib import Path

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
DEVICE = 'instance=~"$instance"'
TARGET = DEVICE + ', target=~"$target"'
LOSS_STEPS = [(None, "green"), (0.01, "yellow"), (0.05, "red")]


def query(expression, legend="", ref="A", is_instant=False):
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expression,
        "instant": is_instant,
        "range": not is_instant,
        "legendFormat": legend,
        "refId": ref,
    }


def thresholds(steps):
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in steps]}


def panel(kind, title, about, unit, targets, place, steps=((None, "green"),), options=None, custom=None, mappings=()):
    x, y, width, height = place
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "color": {"mode": "thresholds" if kind == "stat" else "palette-classic"},
                "thresholds": thresholds(steps),
                "mappings": list(mappings),
                "custom": custom or {},
            },
            "overrides": [],
        },
        "options": options or {},
        "targets": targets,
    }


def stat(title, about, unit, expression, x, steps=((None, "green"),), mappings=()):
    options = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    }
    return panel("stat", title, about, unit, [query(expression, is_instant=True)], (x, 0, 4, 4), steps, options, None, mappings)


def series(title, about, unit, targets, place, draw="line", steps=((None, "green"),)):
    options = {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if draw == "steps" else "linear",
        "lineWidth": 1,
        "fillOpacity": 10,
        "showPoints": "never",
        "spanNulls": False,
        "axisSoftMin": 0,
    }
    return panel("timeseries", title, about, unit, targets, place, steps, options, custom)


def text_values(**texts):
    values = {value.removeprefix("is_"): {"text": text, "index": at} for at, (value, text) in enumerate(texts.items())}
    return [{"type": "value", "options": values}]


def panels():
    latest = "max(%s{" + TARGET + "})"
    yield stat(
        "Service",
        "Whether the service runs and can use its database.",
        "none",
        f'max(packetparamedic_state{{{DEVICE}, state="running"}})',
        0,
        [(None, "red"), (1, "green")],
        text_values(is_0="faulted", is_1="running"),
    )
    yield stat(
        "Outage",
        "Whether something that a monitor probes is not reachable.",
        "none",
        f"max(packetparamedic_outage_open{{{DEVICE}}})",
        4,
        [(None, "green"), (1, "red")],
        text_values(is_0="none", is_1="outage"),
    )
    yield stat(
        "Since the last result",
        "The time since the latest test that measured something began.",
        "s",
        "time() - " + latest % "packetparamedic_last_result_timestamp_seconds",
        8,
        [(None, "green"), (86400, "red")],
    )
    yield stat(
        "Data of this month",
        "Payload of all tests of this calendar month.",
        "decbytes",
        f"sum(packetparamedic_data_used_month_bytes{{{DEVICE}}})",
        12,
    )
    yield stat(
        "Next test",
        "When the next scheduled test starts.",
        "dateTimeFromNow",
        f"min(packetparamedic_schedule_next_start_timestamp_seconds{{{DEVICE}}}) * 1000",
        16,
    )
    yield stat(
        "Outages in this time",
        "The outages that were recorded in the time of the dashboard.",
        "none",
        f"sum(increase(packetparamedic_outages_total{{{DEVICE}}}[$__range]))",
        20,
        [(None, "green"), (1, "yellow")],
    )
    for at, direction in enumerate(["download", "upload"]):
        yield series(
            direction.capitalize(),
            f"The {direction} of the latest result of each target, and what the contract promises.",
            "bps",
            [
                query(
                    f'packetparamedic_last_result_bits_per_second{{{TARGET}, direction="{direction}"}}',
                    "{{target}} ({{engine}})",
                ),
                query(
                    f'packetparamedic_plan_bits_per_second{{{DEVICE}, direction="{direction}"}}', "plan: {{kind}}", "B"
                ),
            ],
            (12 * at, 4, 12, 8),
            "steps",
        )
    yield series(
        "Round trip of the tests",
        "The median round trip of the latest result of each target, without load and under load.",
        "s",
        [query(f"packetparamedic_last_result_round_trip_seconds{{{TARGET}}}", "{{target}} ({{engine}}): {{load}}")],
        (0, 12, 12, 8),
        "steps",
    )
    yield series(
        "Loss of the tests",
        "The share of lost probes of the latest result of each target.",
        "percentunit",
        [query(f"packetparamedic_last_result_loss_ratio{{{TARGET}}}", "{{target}} ({{engine}}): {{load}}")],
        (12, 12, 12, 8),
        "steps",
        LOSS_STEPS,
    )
    buckets = f"packetparamedic_monitor_round_trip_seconds_bucket{{{DEVICE}}}[$__rate_interval]"
    yield series(
        "Round trip of the monitors",
        "Median and 95th percentile, without probes beside a test.",
        "s",
        [
            query(f"histogram_quantile(0.5, sum by (monitor, le) (rate({buckets})))", "{{monitor}}: median"),
            query(f"histogram_quantile(0.95, sum by (monitor, le) (rate({buckets})))", "{{monitor}}: p95", "B"),
        ],
        (0, 20, 12, 8),
    )
    lost = f"sum by (monitor) (rate(packetparamedic_monitor_probes_lost_total{{{DEVICE}}}[$__rate_interval]))"
    sent = f"sum by (monitor) (rate(packetparamedic_monitor_probes_total{{{DEVICE}}}[$__rate_interval]))"
    yield series(
        "Loss of the monitors",
        "The share of lost probes.",
        "percentunit",
        [query(f"{lost} / ({sent} > 0)", "{{monitor}}")],
        (12, 20, 12, 8),
        "line",
        LOSS_STEPS,
    )
    yield series(
        "Time without a connection",
        "The recorded outages by what failed, in seconds a day.",
        "s",
        [query(f"sum by (scope) (increase(packetparamedic_outage_seconds_total{{{DEVICE}}}[1d])) > 0", "{{scope}}")],
        (0, 28, 24, 8),
    )


def variable(name, label, definition):
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": definition, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def dashboard():
    numbered = [{"id": number, **content} for number, content in enumerate(panels(), 1)]
    return {
        "uid": "packetparamedic",
        "title": "PacketParamedic",
        "description": "The line as packetparamedic measures it: tests, monitors, outages.",
        "tags": ["packetparamedic", "network"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {
                    "type": "datasource",
                    "name": "datasource",
                    "label": "Data source",
                    "query": "prometheus",
                    "current": {},
                    "refresh": 1,
                    "includeAll": False,
                    "multi": False,
                },
                variable("instance", "Device", "label_values(packetparamedic_build_info, instance)"),
                variable(
                    "target",
                    "Target",
                    "label_values(packetparamedic_last_result_timestamp_seconds{" + DEVICE + "}, target)",
                ),
            ]
        },
        "panels": numbered,
    }


def main():
    path = Path(__file__).with_name("packetparamedic.json")
    text = json.dumps(dashboard(), indent=2) + "\n"
    if sys.argv[1:] == ["--check"]:
        if not path.is_file() or path.read_text() != text:
            sys.exit(f"{path.name} is not what {Path(__file__).name} makes: run it")
    else:
        path.write_text(text)


main()
