"""Every bad input is refused by its argument or path, with the value and the fix; its valid neighbours are accepted."""

import importlib
import re
from pathlib import Path

import optax
import pytest
from bad_inputs.examples import trainable, whole_model

from ember_optax import ember, stochastic_rounding

# One module for each area; `examples` has what they share.
AREAS = [
    importlib.import_module(f"bad_inputs.{path.stem}")
    for path in sorted((Path(__file__).parent / "helpers" / "bad_inputs").glob("[a-z]*.py"))
    if path.stem != "examples"
]
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


def test_a_whole_equinox_model_at_update_is_its_arrays():
    """Functions in the model are none of Ember's business, as with `optax.adamw`; the decay reads the arrays all the same."""
    model, params = whole_model(), trainable(whole_model())

    def update(given, weight_decay):
        tx = ember(1e-2, optax.adamw(1e-2), weight_decay=weight_decay)
        return tx.update(params, tx.init(params), given)[0].embedding.weight

    assert (update(model, 0.1) == update(params, 0.1)).all()
    tx = stochastic_rounding(0)
    rounded, _ = tx.update(params, tx.init(params), model)
    assert (rounded.embedding.weight == params.embedding.weight).all()
    assert (update(model, 0.1) != update(model, 0.0)).any()


def test_there_is_enough_data():
    assert len(BAD) >= 600
    assert len(GOOD) >= 50
