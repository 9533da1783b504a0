r"""Published rivals for token tables that normalize a gradient or its momentum instead of keeping a second moment.

Each is an `optax` transformation of tables with two axes: gradients in, directions without a learning rate out. Below, rows are
tokens, V of them with D features each, whatever the order in which a table is stored. Directions have a root mean square of
about one, as Adam's have; where a paper scales by another constant, its rates are that constant times ours.

Not all agree that it helps: https://arxiv.org/abs/2608.22253 is cited for a row-normalized head that costs 0.006 to 0.015 nats;
its text was not at hand.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.evidence.kinds import kinds
from ember_optax import token_tables

_EPS = 1e-8
# Singular values below its root, as a share of the largest, are noise in a float32 Gram matrix.
_SMALLEST_EIGENVALUE = 1e-6


def scale_by_row_norm() -> optax.GradientTransformation:
    r"""Divides each row by its own root mean square: no state at all.

    .. math:: u_i = g_i / \max(\mathrm{rms}(g_i), \epsilon)

    Source: the row-norm update of "Symmetry-Compatible Principle for Optimizer Design", https://arxiv.org/abs/2605.18106. Its
    authors' code normalizes a momentum (decay 0.95), which is `scale_by_rmnp`, and centres the head's rows; this has neither.
    """
    return _stateless(lambda g_VxD, kind: _unit_rows(g_VxD))


def scale_by_rmnp(b1: float = 0.95) -> optax.GradientTransformation:
    r"""Divides each row of the momentum by its root mean square.

    .. math:: m \leftarrow b_1 m + (1 - b_1) g \qquad u_i = m_i / \max(\mathrm{rms}(m_i), \epsilon)

    Source: RMNP, https://arxiv.org/abs/2603.20527. Only the abstract was at hand: momentum, then l2 normalization of rows instead
    of Muon's orthogonalization. The decay is the one that 2605.18106 has for the same step. The paper trains hidden matrices by
    it; here it trains the tables.
    """
    return optax.chain(optax.ema(b1, debias=False), scale_by_row_norm())


def scale_by_scale(b1: float = 0.9) -> optax.GradientTransformation:
    r"""Input tables: each feature divided by its root mean square over all tokens. Heads: `scale_by_rmnp`, with this decay.

    Source: SCALE, https://arxiv.org/abs/2506.16659, and its authors' code, which says which axis "column-wise" is for which
    table. Momentum is on the last layer alone.
    """
    by_kind: dict[Any, Any] = {"input": _stateless(lambda g_VxD, kind: _unit_rows(g_VxD.T).T), "head": scale_by_rmnp(b1)}
    return optax.partition(by_kind, kinds)


def scale_by_hybrid(b1: float = 0.95) -> optax.GradientTransformation:
    r"""Makes the rows of the momentum equally long, then its singular values equal.

    .. math:: m \leftarrow b_1 m + (1 - b_1) g \qquad r_i = m_i / \max(\lVert m_i \rVert, \epsilon) \qquad
              u = \lVert r \rVert_* \, r \, (r^T r)^{-1/2} / \sqrt{D}

    The mean over all rows is taken from m, from r and from u of a head, since a softmax does not see it. Singular values below a
    thousandth of the largest stay zero.

    Source: the hybrid row-norm/spectral update of https://arxiv.org/abs/2605.18106, in the order and with the defaults of its
    authors' code (rows first; times the nuclear norm). That has five steps of an iteration for the inverse root, this has
    eigenvalues; the root of D, which makes the root mean square one, is ours.
    """
    return optax.chain(optax.ema(b1, debias=False), _stateless(_hybrid))


def _hybrid(m_VxD: jax.Array, kind: str) -> jax.Array:
    centred = _centred if kind == "head" else lambda x: x
    features = m_VxD.shape[1]
    r_VxD = centred(_unit_rows(centred(m_VxD)) / features**0.5)
    eigenvalues, vectors = jnp.linalg.eigh(r_VxD.T @ r_VxD)
    kept = eigenvalues > _SMALLEST_EIGENVALUE * eigenvalues[-1]
    roots = jnp.where(kept, jnp.sqrt(jnp.where(kept, eigenvalues, 1.0)), 0.0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, roots, 1.0), 0.0)
    return centred(r_VxD @ (vectors * inverse) @ vectors.T) * (jnp.sum(roots) / features**0.5)


def _unit_rows(x: jax.Array) -> jax.Array:
    """Rows with a root mean square of one; rows of zeros stay zeros."""
    return x / jnp.maximum(jnp.sqrt(jnp.mean(x * x, axis=1, keepdims=True)), _EPS)


def _centred(x: jax.Array) -> jax.Array:
    return x - jnp.mean(x, axis=0, keepdims=True)


def _stateless(direction: Callable[[jax.Array, str], jax.Array]) -> optax.GradientTransformation:
    """`direction(g_VxD, kind)` for each table, whichever axis has its tokens."""

    def of_table(g: jax.Array, numbers: Any, kind: str) -> jax.Array:
        return direction(g, kind) if numbers.token_axis == 0 else direction(g.T, kind).T

    def update(updates: Any, params: Any) -> Any:
        del params
        return jax.tree.map(of_table, updates, token_tables(updates), kinds(updates))

    return optax.stateless(update)
