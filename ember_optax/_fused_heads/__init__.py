"""Fused heads: a softmax head that is trained without logits and without an array of its gradient.

The gradient of a (V, D) head is `G = g^T h`, with the gradient of the logits g, (N, V), and the hidden states h, (N, D). Each
chunk of G is computed where it is needed. The trip of a head named in `row_sparse.value_and_grad(..., heads=...)`:

    loss_fn(params)    calls losses.linear_softmax_cross_entropy with a `TappedHead` instead of a table      in_loss.py
          |            the first trace: which calls there are                                             calls.py
          |            in a loop, each step gets its part of the tap                                      scans.py
          |            forward: the logsumexp of each token
          |            backward: chunks of G, of which only the sums of squares stay                        squares.py
          v
         Tap           hidden states, labels, logsumexp, cotangents, sums of squares                         taps.py, gradient.py
          |            several calls, or steps of a scan: their taps joined, and the sums of squares of all together
          |            + the rows that the lookup of a tied table touched
          v
      FusedLeaf        the gradient: a leaf of the gradients, which may be scaled and clipped                leaf.py
          |            scale_by_ember: the state after the step, and a `Preconditioner` from the squares     step.py
          v
      FusedLeaf        the update: a leaf of the updates, which may be scaled and rounded                    leaf.py
          |            params + leaf: chunks of G again, preconditioned and added in place                   step.py
          v
        params

All of it may be inside of the caller's own `jax.shard_map` (manual.py).

`value_and_grad` traces the loss function twice. It differentiates with respect to a tap of zeros, whose sizes it has to know
before, and only a trace shows how many hidden states a head gets and in which dtype. One trace would be enough if a tap could be
added to a function that is traced already. But the loss may be inside `jax.jit`, `jax.checkpoint` or `jax.lax.cond`, whose
parameters would have to be rewritten for each version of JAX. The first trace has no derivative and is not compiled: it takes
0.03 s of the 3.3 s in which the step of a model with four layers is traced and compiled (jax 0.10.2, two cores).
"""
