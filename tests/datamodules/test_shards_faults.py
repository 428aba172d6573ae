"""The fault tally of the benchmark with fewer random cases: nothing wrong, nothing unnamed, no crash, all verified."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import faults

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FLIPS, TRUNCATIONS = 60, 20


def test_damage_is_noticed_named_and_never_becomes_a_number() -> None:
    singles = list(faults.single_cases())
    rows = faults.tally([*faults.random_cases(FLIPS, TRUNCATIONS, seed=1), *singles])
    assert sum(row["tried"] for row in rows) == FLIPS + TRUNCATIONS + len(singles)
    assert {row["kind"] for row in rows} >= {case.kind for case in singles}
    for row in rows:
        assert row["wrong value"] == 0, row
        assert row["crash or hang"] == 0, row
        assert row["unnamed"] == 0, row
        assert row["caught by verify"] == row["tried"], row
        assert row["caught by reading"] + row["harmless when read"] == row["tried"], row
    for row in rows:
        # only a flipped bit may lie where nobody reads
        assert row["harmless when read"] == 0 or row["kind"].startswith("byte flip"), row


def test_the_tally_recognises_a_wrong_value_an_undamaged_set_and_a_message_without_the_file() -> None:
    forged = faults.Case("forged", faults.forged_value, frozenset([faults.FIRST]), forged=True)
    untouched = faults.Case("untouched", lambda folder: None, frozenset([faults.FIRST]))
    missing = faults.Case("missing", lambda folder: (folder / faults.FIRST).unlink(), frozenset([faults.SECOND]))
    rows = {row["kind"]: row for row in faults.tally([forged, untouched, missing])}
    assert rows["forged"]["wrong value"] == 1
    assert rows["forged"]["caught by verify"] == 0
    assert rows["untouched"]["harmless when read"] == 1
    assert rows["untouched"]["caught by verify"] == 0
    assert rows["missing"]["unnamed"] == 1


def test_a_crash_and_a_hang_are_results() -> None:
    program = (
        "import os, time\nfrom tests.benchmarks._fault_reader import isolated\n"
        "for end in (os.abort, lambda: os.kill(os.getpid(), 7), lambda: time.sleep(60), lambda: None):\n"
        "    def steps():\n        yield 'begun'\n        end()\n        yield 'ended'\n"
        "    print(isolated(steps, seconds=0.5))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    expected = [(["begun"], "signal 6"), (["begun"], "signal 7"), (["begun"], "hang"), (["begun", "ended"], "")]
    assert done.stdout.splitlines() == [repr(line) for line in expected]
