"""Tables in a file: their folder, the options of a folder that exists, saves."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.large_tables import GRADS, table
from ember_optax import large_tables


def in_folder(use, **options):
    """`use` of a table in a file and of its folder."""

    def provoke():
        with tempfile.TemporaryDirectory() as folder, table(path=Path(folder) / "t", **options)() as one:
            use(one, Path(folder) / "t")

    return provoke


def reopened(**options):
    """A table in a file, opened again with other options."""

    def use(one, path):
        one.close()
        table(**{"path": path, **options})().close()

    return in_folder(use)


def saved(tree):
    return in_folder(lambda one, _: one.save(tree))


def restored(tree, like):
    def use(one, _):
        one.save(tree)
        one.restore(like)

    return in_folder(use)


def restored_after_a_step(one, _):
    one.write(large_tables.update(one.fetch(np.array([3])), GRADS, 0.1))
    one.restore(())


def on_a_file():
    with tempfile.NamedTemporaryFile() as file:
        table(path=file.name)()


def of_more_processes():
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "part_0_of_2").mkdir()
        table(path=folder)()


W = {"w": jnp.ones(3)}

BAD = {
    "path is a number": (table(path=3), TypeError, r"^path must be the name of a folder, got 3 of type int; pass path="),
    "path is empty": (table(path=""), TypeError, r"^path must be the name of a folder, got ''"),
    "path is a file": (on_a_file, ValueError, r"^path '.*' is a file, but a table needs a folder: pass another name"),
    "another shape": (
        reopened(shape=(100, 5)),
        ValueError,
        r"^shape is \[100, 5\], but the table in .* was made with \[100, 4\]",
    ),
    "more rows": (reopened(shape=(101, 4)), ValueError, r"^shape is \[101, 4\], but the table in .* was made with \[100, 4\]"),
    "another dtype": (reopened(dtype=jnp.float16), ValueError, r"^dtype is 'float16', but the table in .* 'float32': pass"),
    "another seed": (reopened(seed=1), ValueError, r"^seed is 1, but the table in .* was made with 0: pass that value"),
    "another std": (reopened(std=0.1), ValueError, r"^std is 0.1, but the table in .* was made with 0.02"),
    "another b2": (reopened(b2=0.9), ValueError, r"^b2 is 0.9, but the table in .* was made with 0.999"),
    "another eps": (reopened(eps=1e-6), ValueError, r"^eps is 1e-06, but the table in .* was made with 1e-08"),
    "save of text": (saved({"a": "text"}), TypeError, r"^the leaf \['a'\] is str, which a save cannot hold: save arrays"),
    "save of a key": (saved(jax.random.key(0)), TypeError, r"^the leaf tree is .*save jax.random.key_data of it"),
    "save in memory": (lambda: table()().save(), ValueError, r"^save needs a table in a file, .*pass path= to HostTable"),
    "restore in memory": (lambda: table()().restore(()), ValueError, r"^restore needs a table in a file"),
    "restore of another shape": (
        restored(W, {"w": jnp.ones(4)}),
        ValueError,
        r"^the save does not fit `like`: \['w'\] is float32\[3\] in the save and float32\[4\] in `like`; pass a tree",
    ),
    "restore of another dtype": (restored(W, {"w": jnp.ones(3, int)}), ValueError, r"is float32\[3\] in the save and int32\[3\]"),
    "restore of another name": (restored(W, {"v": jnp.ones(3)}), ValueError, r"\['v'\] is missing in the save and float32\[3\]"),
    "restore of less": (restored(W, ()), ValueError, r"\['w'\] is float32\[3\] in the save and missing in `like`"),
    "restore of another step": (
        in_folder(restored_after_a_step),
        ValueError,
        r"^the table is at step 1, but its save at 0: open the table again to return to its save",
    ),
    "a table of two processes": (of_more_processes, ValueError, r"is split over 2 processes, but this one over 1: start as many"),
}

GOOD = {
    "the same table again": reopened(),
    "restore by shapes": restored(W, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}),
}
