"""Variable tracking: chains of assignments among other chains, and what one variable is in the end.

    lamp: Anna ⏎ river: Bruno ⏎ kettle: lamp       kettle? → Anna       (one hop: kettle is lamp, lamp is Anna)

A line gives a variable a value, or what another variable is. In the manner of RULER's variable tracking
(arXiv 2404.06654), asked for the value and not for all the names.
"""

from __future__ import annotations

from typing import Any

from evalspec.data.generators import GENERATORS
from evalspec.data.worlds import lexicon
from evalspec.data.worlds.chance import below, pick, shuffled, stream
from evalspec.data.worlds.contexts import check_count, check_depth, depth_of, pieces, places
from evalspec.errors import DataError

DEFAULT_COUNT = 200


@GENERATORS.register("world.variables")
def variables(
    seed: int,
    count: int | None = None,
    *,
    hops: int = 1,
    chains: int = 4,
    queries: int = 1,
    depth: float | None = None,
) -> list[dict[str, Any]]:
    """`chains` chains of `hops` + 1 assignments, mixed, each in its own order; `queries` rows ask for one chain each.

    Columns: id, assignments (list of {name, value}), name (the last variable of its chain), answer, chain (its names),
    hops, chains, n (assignments), depth (where the asked name is assigned), length, context. With 0 hops it is a list
    of records. DataError unless chains · (hops + 1) words are known as names.
    """
    check_count("world.variables", "hops", hops, 0)
    check_count("world.variables", "chains", chains, 1)
    check_count("world.variables", "queries", queries, 1, chains)
    check_depth("world.variables", depth)
    n = chains * (hops + 1)
    if n > len(lexicon.KEYS):
        raise DataError(
            f"`world.variables` knows {len(lexicon.KEYS)} names; {chains} chains of {hops} hops need {n}. "
            "Ask for fewer `chains` or `hops`"
        )
    rows: list[dict[str, Any]] = []
    for number in range(DEFAULT_COUNT if count is None else count):
        context, turn = divmod(number, queries)
        if turn == 0:
            rng = stream("variables", seed, context)
            names = shuffled(rng, lexicon.KEYS, n)
            own = [names[at * (hops + 1) : (at + 1) * (hops + 1)] for at in range(chains)]
            values = shuffled(rng, lexicon.NAMES, chains)
            values += [pick(rng, lexicon.NAMES) for _ in range(chains - len(values))]
            told = [[value, *chain[:-1]] for chain, value in zip(own, values, strict=True)]
            waiting = [at for at in range(chains) for _ in range(hops + 1)]
            assignments: list[dict[str, str]] = []
            ends, done = [0] * chains, [0] * chains
            while waiting:  # any chain may go on next, so that the links of one stand apart
                chain = waiting.pop(below(rng, len(waiting)))
                ends[chain] = len(assignments)
                assignments.append({"name": own[chain][done[chain]], "value": told[chain][done[chain]]})
                done[chain] += 1
            order = sorted(range(chains), key=ends.__getitem__)
            if depth is None:
                asked = [order[at] for at in places(rng, chains, queries, None)]
            else:
                wanted = depth * (n - 1)
                asked = sorted(range(chains), key=lambda chain: (abs(ends[chain] - wanted), ends[chain]))[:queries]
            length = pieces("\n".join(f"{line['name']}: {line['value']}" for line in assignments))
        chain = asked[turn]
        rows.append(
            {
                "id": f"v{seed}-{number:04d}",
                "assignments": assignments,
                "name": own[chain][-1],
                "answer": values[chain],
                "chain": own[chain],
                "hops": hops,
                "chains": chains,
                "n": n,
                "depth": depth_of(ends[chain], n),
                "length": length,
                "context": f"v{seed}-{context:04d}",
            }
        )
    return rows
