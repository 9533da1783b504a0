"""Every bad input is refused by its argument or path, with the value and the fix; its valid neighbours are accepted."""

import re

import pytest
from bad_inputs import declarations, hyperparameters, row_sparse, states, steps

AREAS = (hyperparameters, declarations, steps, states, row_sparse)
BAD = {f"{area.__name__.split('.')[-1]}: {name}": bad for area in AREAS for name, bad in area.BAD.items()}
GOOD = {f"{area.__name__.split('.')[-1]}: {name}": accepted for area in AREAS for name, accepted in area.GOOD.items()}


@pytest.mark.parametrize("name", BAD)
def test_is_refused(name):
    provoke, error, message = BAD[name]
    with pytest.raises(error) as raised:
        provoke()
    assert re.search(message, str(raised.value), re.DOTALL), str(raised.value)


@pytest.mark.parametrize("name", GOOD)
def test_valid_neighbour_is_accepted(name):
    GOOD[name]()


def test_there_is_enough_data():
    assert len(BAD) >= 600
    assert len(GOOD) >= 50
