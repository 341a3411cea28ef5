"""Read back what `dtrap fit` left in a run folder."""

import json


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def numbers(folder):
    rows = {(row["episode"], row["method"]): row for row in rows_of(folder)}
    assert len(rows) == len(rows_of(folder)), "an episode stands twice"
    return {key: {k: v for k, v in row.items() if k != "seconds"} for key, row in sorted(rows.items())}


def summary_of(folder):
    def without_seconds(value):
        if isinstance(value, dict):
            return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
        return value

    return without_seconds(json.loads((folder / "summary.json").read_text()))
