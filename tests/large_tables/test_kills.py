"""A process is killed a hundred times, at random moments of its steps and saves."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from saved_tables import BETWEEN_SAVES, PARAMS, contents, open_table, take_step

PROGRAM = f"""
import sys
sys.path[:0] = {[path for path in sys.path if path.endswith("tests/helpers")]!r}
from saved_tables import *
table = open_table(sys.argv[1])
while True:
    take_step(table)
    number = table.count + table.total_notfinite
    if number % BETWEEN_SAVES == 0:
        table.save(tree_at(number))
    print(number, flush=True)
"""


def killed_after(folder, steps, part):
    """Starts the program, and kills it in the step or save after `steps` steps, when a part of a step's time is over."""
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, folder], stdout=subprocess.PIPE, env=os.environ)
    start = time.monotonic()
    for _ in range(steps):
        assert child.stdout.readline()
        start, seconds = time.monotonic(), time.monotonic() - start
    time.sleep(part * seconds)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    child.stdout.close()


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    """No mixture of two steps, and no more is lost than the steps since the last save, which are counted."""
    reference, rng, lost = open_table(None), np.random.default_rng(0), []
    at_step = {0: contents(reference)}
    for _ in range(100):
        killed_after(tmp_path / "t", int(rng.integers(2, 9)), rng.uniform(0.0, 1.0))
        with open_table(tmp_path / "t") as table:
            number = table.count + table.total_notfinite
            while max(at_step) < number:
                take_step(reference)
                at_step[max(at_step) + 1] = contents(reference)
            assert contents(table) == at_step[number]
            assert number % BETWEEN_SAVES == 0
            assert not number or table.restore(PARAMS)["step"] == number
            assert table.steps_lost <= BETWEEN_SAVES
            lost.append(table.steps_lost)
    print(f"{max(at_step)} steps, {sum(lost)} steps lost, at most {max(lost)} at once")
    assert max(at_step) > 100
    assert max(lost) > 0
