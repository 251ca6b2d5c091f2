"""`evalspec compare RUN --architecture … --json | python -m benchmarks.seed_tables TASK:METRIC[:STAGE] …`: tables.

One row a condition: the mean of each architecture over its seeds, and each pair's difference with its 95 % interval
(hierarchical bootstrap over seeds, draws and samples); bold where Holm's correction leaves it decided.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def label(params: dict[str, Any]) -> str:
    """A condition by the last words of its paths."""
    return ", ".join(f"{path.rsplit('.', 1)[-1]} = {value}" for path, value in params.items()) or "–"


def cell(found: dict[str, Any]) -> str:
    """A difference as the table shows it."""
    text = f"{found['statistic']:+.2f} [{found['ci_low']:+.2f}, {found['ci_high']:+.2f}]".replace("-", "−")
    return f"**{text}**" if found["verdict"] != "undecided" else text


def tables(compared: dict[str, Any], wanted: list[str]) -> str:
    """Markdown: one table for each TASK:METRIC or TASK:METRIC:STAGE."""
    parts = []
    for word in wanted:
        task, metric, stage = [*word.split(":"), "main"][:3]
        rows: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
        for one in compared["comparisons"]:
            if (one["task"], one["metric"], one["stage"]) == (task, metric, stage):
                key = (label(one["params"]), "" if one["filter"] == "default" else str(one["filter"]))
                rows.setdefault(key, {})[one["model_a"], one["model_b"]] = one
        pairs = sorted(
            {pair for found in rows.values() for pair in found}, key=lambda pair: (pair[0] != "transformer", pair)
        )
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        heads = ["condition", *names, *(f"{a} − {b} [95 %]" for a, b in pairs)]
        title = f"`{task}`, {metric}" + (f", stage `{stage}`" if stage != "main" else "")
        lines = [
            f"{title}:",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
        ]
        for (condition, chain), found in rows.items():
            means = {one["model_a"]: one["value_a"] for one in found.values()}
            means |= {one["model_b"]: one["value_b"] for one in found.values()}
            shown = [f"{condition}, {chain}" if chain else condition]
            shown += [f"{means[name]:.2f}" if name in means else "" for name in names]
            lines.append(f"| {' | '.join(shown + [cell(found[pair]) if pair in found else '' for pair in pairs])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(tables(json.load(sys.stdin), sys.argv[1:]))
