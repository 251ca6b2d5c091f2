"""One row of the harness's table, and where it stays below its bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.compare import Agreement


@dataclass
class Line:
    """One row of the table."""

    work: str
    model: str
    peer_seconds: float | None = None
    seconds: float | None = None
    ratio_bar: float | None = None
    computed: float | None = None
    computed_bar: float | None = None
    share: float | None = None
    share_bar: float | None = None
    agreement: Agreement | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer."""
        return self.peer_seconds / self.seconds if self.peer_seconds and self.seconds else None

    @property
    def short(self) -> list[str]:
        """Where it stays below its bar."""
        found = []
        if self.ratio is not None and self.ratio_bar and self.ratio < self.ratio_bar:
            found.append("ratio")
        if self.computed is not None and self.computed_bar and self.computed > self.computed_bar:
            found.append("computed")
        if self.share is not None and self.share_bar and self.share < self.share_bar:
            found.append("share")
        return found

    def cells(self) -> tuple[Any, ...]:
        """As shown."""
        ratio = f"{self.ratio:.1f}x" if self.ratio is not None else None
        bars = [f"≥ {self.ratio_bar:g}x"] if self.ratio_bar else []
        bars += [f"≤ {self.computed_bar:g}"] if self.computed_bar else []
        bars += [f"≥ {self.share_bar:.0%}"] if self.share_bar else []
        return (
            self.work,
            self.model,
            f"{self.peer_seconds:.2f}" if self.peer_seconds is not None else None,
            f"{self.seconds:.3f}" if self.seconds is not None else None,
            ratio,
            f"{self.computed:.3f}" if self.computed is not None else None,
            f"{self.share:.0%}" if self.share is not None else None,
            ", ".join(bars),
            "short: " + ", ".join(self.short) if self.short else "met" if bars else None,
            f"{'yes' if self.agreement.agrees else 'NO'}: {self.agreement.says}" if self.agreement else None,
        )


COLUMNS = (
    "work",
    "model",
    "peer s",
    "evalspec s",
    "ratio",
    "computed/distinct",
    "of GEMM rate",
    "bar",
    "bar met",
    "scores agree",
)
