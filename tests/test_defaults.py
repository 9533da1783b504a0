"""What is meant where nothing is said: another default would silently change every run."""

import inspect

import jax.numpy as jnp
import pytest

import ember_optax
from ember_optax import geometry, large_tables, losses, regularizers, row_sparse, vocab

# By the name of the parameter, in every public function that has it with a default other than None.
DEFAULTS = {
    "adam_b2": 0.999,
    "at_most": 0,
    "b1": 0.9,
    "b2": 0.999,
    "batch_axes": (),
    "below": 1,
    "centered": False,
    "coefficient": 1.0,
    "covariance_scale": 1e-9,
    "decay": 1.0,
    "dimension_numbers": "auto",
    "dtype": jnp.float32,
    "eps": 1e-8,
    "exclude": (),
    "feature_mean": "all_rows",
    "feature_mesh_axes": (),
    "has_aux": False,
    "heads": (),
    "include": (),
    "initializer": "mean",
    "iterations": 1,
    "keep": (),
    "label_smoothing": 0.0,
    "num_walks": 256,
    "power": 0.5,
    "rank": 3,
    "replicate_ember": False,
    "required": True,
    "reserve": True,
    "reverse": False,
    "samples": 256,
    "smoothing": 1.0,
    "spectral": True,
    "std": 0.02,
    "sync_log": False,
    "tables": "auto",
    "token_axis": 0,
    "token_mesh_axes": (),
    "unrelated": (),
    "unroll": 1,
    "weight_decay": 0.0,
    "what": "updates",
    "z_loss": 0.0,
}
OTHERS = {("iso_score", "centered"): True}


@pytest.mark.parametrize(
    "face", [ember_optax, geometry, large_tables, losses, regularizers, row_sparse, vocab], ids=lambda face: face.__name__
)
def test_defaults(face):
    public = {name: getattr(face, name) for name in dir(face) if not name.startswith("_")}
    found = {
        (name, parameter.name): parameter.default
        for name, function in public.items()
        if callable(function)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not parameter.empty and parameter.default is not None
    }
    assert found == {key: OTHERS.get(key, DEFAULTS.get(key[1])) for key in found}
