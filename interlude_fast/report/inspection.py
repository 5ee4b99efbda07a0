"""An inspection in words and tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from interlude_fast.data.inspection import Duplicates, Inspection

SHOWN = 5  # sizes, duplicates, files and groups that are listed; all are in the JSON


def inspection_tables(found: Inspection) -> Iterator[Table | str]:
    """Tables and lines, in the order in which they are read."""
    shape = f"{found.size} px, {found.channels} channels"
    yield f"{found.dataset}: {found.images} images, {shape}, data {found.hash[:16]}"
    yield f"mean {_numbers(found.mean)}, standard deviation {_numbers(found.std)} (of values scaled to [0, 1])"
    yield f"sizes before resizing: {_few(found.sizes)}; modes: {_few(found.modes)}"
    yield _class_table(found)
    yield from _listed(
        f"unreadable files: {len(found.unreadable)}", [f"{p}: {why}" for p, why in found.unreadable]
    )
    yield from _duplicate_lines("exact", found.exact)
    yield from _duplicate_lines("near", found.near)
    leaks = [f"{group}: in {' and '.join(parts)}" for group, parts in found.leaking_groups.items()]
    yield from _listed(f"groups on more than one side of training, validation and test: {len(leaks)}", leaks)


def _class_table(found: Inspection) -> Table:
    table = Table(title="images of each class")
    table.add_column("class")
    for role in found.roles:
        table.add_column(role, justify="right")
    for name, counts in found.classes.items():
        table.add_row(name, *(str(counts[role]) for role in found.roles))
    known = {role: sum(counts[role] for counts in found.classes.values()) for role in found.roles}
    if known != found.roles:
        table.add_row("(no label)", *(str(n - known[role]) for role, n in found.roles.items()))
    table.add_row("all", *map(str, found.roles.values()), end_section=True)
    return table


def _duplicate_lines(kind: str, found: Duplicates) -> Iterator[str]:
    across = []
    for pair, n in sorted(found.counts.items()):
        a, b = pair.split("-")
        across.append(f"{n} {a} {'among themselves' if a == b else f'also in {b}'}")
    conflicts = f"; with different labels: {found.conflicts}" if found.conflicts else ""
    title = f"groups of {kind} duplicates: {len(found.groups)}"
    title += f" ({', '.join(across)}{conflicts})" if across else ""
    yield from _listed(title, [" = ".join(group) for group in found.groups])


def _listed(title: str, lines: list[str]) -> Iterator[str]:
    yield title
    yield from (f"  {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"  ... and {len(lines) - SHOWN} more (--json FILE lists all)"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{v:.4f}" for v in values)


def _few(counts: dict[str, int]) -> str:
    shown = [f"{name} ({n})" for name, n in list(counts.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else "")
