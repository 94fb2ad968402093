#!/usr/bin/env python3
"""Reads the dashboard with Grafana's own types (pip install grafana-foundation-sdk) and fails on a field that they do not have."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def differences(given, read, path="$"):
    """What is in `given` and not, or not the same, in `read`."""
    if isinstance(given, dict):
        if not isinstance(read, dict):
            yield f"{path}: {given!r} was read as {read!r}"
            return
        for key, value in given.items():
            if key not in read:
                if value not in (None, [], {}):
                    yield f"{path}.{key}: unknown"
            else:
                yield from differences(value, read[key], f"{path}.{key}")
    elif isinstance(given, list):
        if not isinstance(read, list) or len(given) != len(read):
            yield f"{path}: {given!r} was read as {read!r}"
            return
        for number, (one, other) in enumerate(zip(given, read)):
            yield from differences(one, other, f"{path}[{number}]")
    elif given != read:
        yield f"{path}: {given!r} was read as {read!r}"


def main():
    path = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("packetparamedic.json")
    register_default_plugins()
    given = json.loads(path.read_text())
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))
    found = list(differences(given, read))
    if found:
        sys.exit("\n".join([f"{path.name} has what Grafana's types do not have:", *found]))
    panels = given["panels"]
    print(f"{path.name}: {len(panels)} panels, every field is one of Grafana's types")


main()
