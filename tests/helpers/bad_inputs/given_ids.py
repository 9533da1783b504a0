"""Token ids that `update` is given."""

from bad_inputs.examples import IDS, state
from bad_inputs.steps import update

BAD = {
    "token_ids of a number": (
        update(token_ids=3),
        TypeError,
        r"token_ids must be a tree of arrays, got 3 of type int: pass token_",
    ),
    "token_ids of text": (
        update(token_ids="x"),
        TypeError,
        r"token_ids must be a tree of arrays, got 'x' of type str: pass token_",
    ),
    "token_ids of a state": (update(token_ids=state()), TypeError, r"token_ids must .* of type PartitionState: pass token_"),
    "token_ids of a list": (update(token_ids=[IDS]), ValueError, r"token_ids names \['0'\], but the parameters are .*; correct"),
    "token_ids of one array": (update(token_ids=IDS), ValueError, r"token_ids names \[''\], but the parameters are .*; correct"),
    "ids of text": (update(token_ids={"embed/embedding": "x"}), TypeError, r"token_ids of 'embed/embedding' .* type str: pass"),
    "ids of truth values": (
        update(token_ids={"embed/embedding": IDS > 1}),
        TypeError,
        r"token_ids of 'embed/emb.* dtype bool: jnp.flatnonzero",
    ),
}
GOOD = {"no ids": update(token_ids={})}
