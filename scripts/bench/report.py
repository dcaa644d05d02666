"""Medians with their spread, ratios with theirs, and the table."""

import statistics

from . import jobs


def median(values):
    return statistics.median(values) if values else None


def spread(values, form):
    """`median (smallest-largest)`, or a dash where nothing was measured."""
    if not values:
        return "-"
    return f"{form(median(values))} ({form(min(values))}-{form(max(values))})"


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def ratio_number(value):
    return f"{value:.2f}"


def values(results, row, server, key="value"):
    """A figure of one row and server, one for each round in which it was measured."""
    return [rounds[key] for rounds in results.get(row, {}).get(server, []) if rounds]


def ratios(results, row, subject, reference):
    """Ratio of the medians, and the ratio of each round that measured both."""
    ours, theirs = (results.get(row, {}).get(name, []) for name in (subject, reference))
    pairs = [a["value"] / b["value"] for a, b in zip(ours, theirs) if a and b and b["value"]]
    if not pairs:
        return None, []
    return median(values(results, row, subject)) / median(values(results, row, reference)), pairs


def verdict(value, at_least, aim, lower_is_better=False):
    if value is None or at_least is None:
        return "-"
    reached = (lambda bound: value <= bound) if lower_is_better else (lambda bound: value >= bound)
    return "aim reached" if reached(aim) else "reached" if reached(at_least) else "MISSED"


def table(header, lines):
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def speed_table(results, rows, servers, subject):
    """One line a row: each server's figure, and the subject's ratio to the reference."""
    header = ["job", "unit", *[server.title for server in servers]]
    names = {server.name for server in servers}
    with_ratio = subject is not None and any(row.reference in names for row in rows)
    if with_ratio:
        references = [server.title for server in servers if server.name in {row.reference for row in rows}]
        header += [f"ratio to {' or '.join(references)} (by round)", "at least", "aim", ""]
    lines = []
    for row in rows:
        line = [row.title, row.unit, *[spread(values(results, row.name, s.name), number) for s in servers]]
        if with_ratio:
            ratio, pairs = ratios(results, row.name, subject, row.reference)
            shown = "-" if ratio is None else f"{ratio:.2f} ({min(pairs):.2f}-{max(pairs):.2f})"
            bounds = [f"{bound:g}" if bound is not None else "-" for bound in (row.at_least, row.aim)]
            line += [shown, *bounds, verdict(ratio, row.at_least, row.aim)]
        lines.append(line)
    for name, (at_least, aim) in jobs.CPU_ROWS.items():
        if name in {row.name for row in rows}:
            used = {s.name: values(results, name, s.name, "server_cpu_us_per_io") for s in servers}
            line = [f"server CPU for each request of: {jobs.BY_NAME[name].title}", "us", *[spread(used[s.name], number) for s in servers]]
            if with_ratio:
                line += ["-", f"{at_least:g} us", f"{aim:g} us", verdict(median(used.get(subject)), at_least, aim, True)]
            lines.append(line)
    return table(header, lines)


def latency_table(results, rows, servers):
    """Mean and 99th percentile of the rows that fio measured, in microseconds."""
    lines = []
    for row in rows:
        if row.kind == "real" or row.unit != "IOPS":
            continue
        cells = []
        for server in servers:
            measured = [m for m in results.get(row.name, {}).get(server.name, []) if m]
            figures = [median([m["latency_us"][key] for m in measured if key in m["latency_us"]]) for key in ("mean", "p99")]
            cells.append(" / ".join("-" if f is None else number(f) for f in figures))
        lines.append([row.title, *cells])
    return table(["latency, mean / 99 %, us", *[s.title for s in servers]], lines) if lines else ""
