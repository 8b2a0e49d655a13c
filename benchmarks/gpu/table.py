"""The results as tables for documents."""

from typing import Any

from benchmarks.gpu.bench import Row

COMMON = ("device", "torch")
"""What is the same in all rows of a file and is said once."""


def table(content: dict[str, Any]) -> str:
    """A markdown table a part."""
    machine = content["machine"]
    said = [f"{machine['device']}, torch {machine['torch']}"]
    if content["trial"]:
        said.append("**A trial of the code: these figures say nothing.**")
    said += [f"{name}: {shown(value)}" for name, value in sorted(content["conditions"].items())]
    parts = [f"## {part}\n\n{one(rows)}" for part, rows in content["parts"].items() if rows]
    return "\n\n".join(["\n".join(said), *parts])


def one(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(
        key for row in rows for key, value in row.items()
        if key not in COMMON and value is not None))
    lines = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |",
             "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(shown(row.get(key)) for key in columns) + " |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value for a reader: three digits of what is not whole."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
