"""The result of a run: rows, and means, differences and intervals over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DtrapError, expected_one_of
from .measured import OF_ROW, TESTED, ZERO_SHOT
from .run_folder import Row
from .statistics import Interval
from .summary import difference_lines, result_lines

if TYPE_CHECKING:
    from pandas import DataFrame

KNOWN = (*OF_ROW, *(ZERO_SHOT + key for key in TESTED))


@dataclass(frozen=True, repr=False)
class ProtocolResult:
    """The results of a run.

    Attributes:
        folder: The run folder.
        rows: One dictionary per episode and method; see `ResultRows` for the keys. Accuracies are in percent.
        summary: The content of summary.json; see `summarize`.
    """

    folder: Path
    rows: list[Row]
    summary: dict[str, Any]

    @property
    def accuracy(self) -> dict[str, Interval | None]:
        """Mean accuracy in percent and its 95% interval by method; None without a result or without queries.

        The interval is Student's t over episodes or seeds, or for a single task the exact binomial one over its test
        images. Diverged episodes are left out.
        """
        return {name: _interval(method["accuracy"]) for name, method in self.summary["methods"].items()}

    @property
    def zero_shot_accuracy(self) -> dict[str, Interval | None]:
        """The same for the backbone without the tuner."""
        return {name: _interval(method["zero_shot_accuracy"]) for name, method in self.summary["methods"].items()}

    @property
    def differences(self) -> dict[str, Interval | None]:
        """First method minus each other on the same episodes, in percentage points, by the other's name."""
        return {name: _interval(difference) for name, difference in self.summary["differences"].items()}

    def measure(self, name: str) -> dict[str, Interval | None]:
        """Mean of a measure and its 95% interval by method; None where no episode has it.

        Args:
            name: A name of `dtrap.protocol.measured.row_measures`, such as "cross_entropy" (nats), "calibration_error"
                (percent), "zero_shot_cross_entropy", or "query.gap_drop" of `AlignmentMonitor`.

        Raises:
            DtrapError: The name is unknown, and no episode has such a measure.
        """
        found = {method: _interval(values.get(name)) for method, values in self._measured().items()}
        if name not in KNOWN and not any(found.values()):
            names = dict.fromkeys([*KNOWN, *(key for values in self._measured().values() for key in values)])
            raise DtrapError(f"unknown measure '{name}'; {expected_one_of(name, names)}")
        return found

    def measure_difference(self, name: str) -> dict[str, Interval | None]:
        """First method minus each other in a measure, paired, by the other's name; see `measure`."""
        self.measure(name)
        return {other: _interval(found.get(name)) for other, found in self.summary["measure_differences"].items()}

    def _measured(self) -> dict[str, dict[str, Any]]:
        """Intervals of the measures of each method."""
        return {
            method: {key: value for key, value in values.items() if isinstance(value, dict) and "half_width" in value}
            for method, values in self.summary["methods"].items()
        }

    def frame(self) -> DataFrame:
        """Return the rows as a pandas frame, one line per episode and method.

        `test_images` and `binomial_interval` say what an `accuracy` rests on; see `ResultRows` for the columns.
        """
        import pandas

        return pandas.DataFrame(self.rows)

    def __repr__(self) -> str:
        return "\n".join([*result_lines(self.summary), *difference_lines(self.summary), f"Results: {self.folder}"])


def _interval(values: Mapping[str, Any] | None) -> Interval | None:
    return None if values is None else Interval(**values)
