"""Draws docs/images/forest.svg from a real pack: `python docs/images/forest.py`."""

from __future__ import annotations

from pathlib import Path

from evalspec.plan.pack import Pack

NAMES = ["shots", "question 1", "a", "b", "question 2", "c", "d"]
PACK = Pack.of([5, 2, 1, 2, 2, 1, 2], [-1, 0, 1, 1, 0, 4, 4], 1, [])
COLOURS = ["#3b6ea5", "#d9822b", "#f0b775", "#f0b775", "#4f8f57", "#9ccaa2", "#9ccaa2"]
PALE = "#c9d9ea"
INK = "#222222"
SIDE = 23
LEFT, TOP = 560, 118  # of the matrix

parts: list[str] = []


def text(x: float, y: float, says: str, *, size: int = 14, anchor: str = "middle", colour: str = INK) -> None:
    """Words at a place."""
    parts.append(
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'dominant-baseline="central">{says}</text>'
    )


def cell(x: float, y: float, colour: str, number: int | None = None) -> None:
    """One token, or one place of the matrix."""
    parts.append(
        f'<rect x="{x:g}" y="{y:g}" width="{SIDE}" height="{SIDE}" fill="{colour}" stroke="white" stroke-width="1.5"/>'
    )
    if number is not None:
        text(x + SIDE / 2, y + SIDE / 2, str(number), size=11, colour="white" if colour in COLOURS[::4] else INK)


def forest() -> None:
    """The segments as a tree, each token with its number in the row."""
    places = [(20, 232), (180, 170), (262, 138), (262, 202), (180, 326), (262, 294), (262, 358)]
    for number, above in enumerate(PACK.parent.tolist()):
        x, y = places[number]
        if above >= 0:
            px, py = places[above]
            px += int(PACK.length[above]) * SIDE
            parts.append(
                f'<path d="M{px} {py + SIDE / 2} C{px + 24} {py + SIDE / 2} {x - 24} {y + SIDE / 2} {x} {y + SIDE / 2}"'
                f' fill="none" stroke="{INK}" stroke-width="1.5"/>'
            )
    for number, (x, y) in enumerate(places):
        for step in range(int(PACK.length[number])):
            cell(x + step * SIDE, y, COLOURS[number], int(PACK.start[number]) + step)
        if len(NAMES[number]) > 1:
            text(x + int(PACK.length[number]) * SIDE / 2, y - 13, NAMES[number])
        else:
            text(x + int(PACK.length[number]) * SIDE + 13, y + SIDE / 2, NAMES[number])
    read: list[int] = []
    for above, length in zip(PACK.parent.tolist(), PACK.length.tolist(), strict=True):
        read.append(length + (read[above] if above >= 0 else 0))
    alone = sum(size for number, size in enumerate(read) if number not in PACK.parent)
    text(20, 432, f"four requests: {alone} tokens; the forest: {PACK.tokens}", anchor="start")


def matrix() -> None:
    """Whom each token attends to, and the row of tokens above it."""
    segments = [number for number, length in enumerate(PACK.length.tolist()) for _ in range(length)]
    reach = PACK.reach.tolist()
    for s in range(PACK.tokens):
        cell(LEFT + s * SIDE, TOP - 2 * SIDE - 8, COLOURS[segments[s]], s)
        text(LEFT + (s + 0.5) * SIDE, TOP - SIDE / 2 - 8, str(reach[s]), size=11)
        cell(LEFT - SIDE - 8, TOP + s * SIDE, COLOURS[segments[s]], s)
        for t in range(PACK.tokens):
            seen = s <= t < reach[s]
            colour = "#f4f4f4"
            if seen:
                colour = COLOURS[0] if segments[t] == 0 else PALE if segments[s] == 0 else COLOURS[segments[s]]
            cell(LEFT + s * SIDE, TOP + t * SIDE, colour)
    text(LEFT - 14, TOP - SIDE * 1.5 - 8, "token s", size=12, anchor="end")
    text(LEFT - 14, TOP - SIDE / 2 - 8, "reach[s]", size=12, anchor="end")
    text(LEFT - SIDE - 20, TOP + SIDE / 2, "token t", size=12, anchor="end")
    right, half = LEFT + PACK.tokens * SIDE + 14, SIDE / 2
    legend = [
        (2, [COLOURS[0]], "trunk", "causal among its own tokens"),
        (6, [PALE], "rectangle", "no mask: all rows read the shots"),
        (10, [COLOURS[1], COLOURS[4]], "units", "small subtrees, a mask each"),
    ]
    for row, colours, name, says in legend:
        y = TOP + row * SIDE
        for number, colour in enumerate(colours):
            cell(right + number * SIDE, y, colour)
        text(right + len(colours) * SIDE + 6, y + half, name, anchor="start")
        text(right, y + 3 * half + 6, says, size=12, anchor="start")


def main() -> None:
    """Write the picture."""
    text(20, 28, "The forest", size=18, anchor="start")
    text(20, 54, "each distinct token once; a path is a prompt", anchor="start")
    text(LEFT - SIDE - 8, 28, "The pack: one row of tokens, depth first", size=18, anchor="start")
    forest()
    matrix()
    below = TOP + (PACK.tokens + 0.9) * SIDE
    text(LEFT, below, "token t reads token s  ⇔  s ≤ t &lt; reach[s]", size=15, anchor="start")
    body = "\n".join(parts)
    Path(__file__).with_name("forest.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1100 500" '
        'font-family="Helvetica, Arial, sans-serif" role="img" '
        'aria-label="A forest of prompts, its pack, and which token attends to which">\n'
        f'<rect width="1100" height="500" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
