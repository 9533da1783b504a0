"""Tests of Ember beside those that all contributed optimizers share."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from optax import contrib


def _reference(gradients, b2, eps):
  """The updates of a (V, D) table by the equations, in float64."""
  token, feature = 0.0, 0.0
  updates = []
  for t, g in enumerate(np.asarray(gradients, np.float64), 1):
    token = b2 * token + (1 - b2) * np.mean(g**2, axis=1)
    feature = b2 * feature + (1 - b2) * np.mean(g**2, axis=0)
    v = np.outer(token, feature) / np.mean(feature) / (1 - b2**t)
    updates.append(g / (np.sqrt(v) + eps))
  return updates


class EmberTest(parameterized.TestCase):

  def _gradients(self, steps=10, tokens=7, features=5):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(steps, tokens, features)).astype(np.float32)
    gradients[::2, 2:4] = 0  # two tokens are silent in every other step
    return gradients

  @parameterized.product(b2=(0.9, 0.999), transposed=(False, True))
  def test_follows_the_equations(self, b2, transposed):
    gradients = self._gradients()
    numbers = contrib.EmberDimensionNumbers(token_axis=int(transposed))
    opt = contrib.scale_by_ember(b2, dimension_numbers=numbers)
    orient = np.transpose if transposed else np.asarray
    state = opt.init(jnp.asarray(orient(gradients[0])))
    for g, expected in zip(gradients, _reference(gradients, b2, 1e-8)):
      update, state = opt.update(jnp.asarray(orient(g)), state)
      np.testing.assert_allclose(orient(update), expected, rtol=2e-4, atol=1e-6)

  def test_state_has_one_number_for_each_token_and_each_feature(self):
    state = contrib.scale_by_ember().init({'table': jnp.ones((7, 5))})
    self.assertEqual(state.nu_token['table'].shape, (7,))
    self.assertEqual(state.nu_feature['table'].shape, (5,))

  def test_state_is_float32_for_bfloat16_parameters(self):
    params = jnp.ones((7, 5), jnp.bfloat16)
    opt = contrib.scale_by_ember()
    update, state = opt.update(params, opt.init(params))
    self.assertEqual(update.dtype, jnp.bfloat16)
    self.assertEqual(state.nu_token.dtype, jnp.float32)

  @parameterized.parameters(0.0, 1e-8)
  def test_silent_tokens_do_not_move(self, eps):
    opt = contrib.scale_by_ember(eps=eps)
    state = opt.init(jnp.zeros((7, 5)))
    for g in self._gradients():
      update, state = jax.jit(opt.update)(jnp.asarray(g), state)
      np.testing.assert_array_equal(update[np.all(g == 0, axis=1)], 0)
      self.assertTrue(np.all(np.isfinite(update)))

  def test_large_and_small_gradients_in_one_table(self):
    g = jnp.asarray([[1e12, 1e12], [1e-7, 1e-7]])
    opt = contrib.scale_by_ember(eps=0.0)
    update, _ = opt.update(g, opt.init(g))
    np.testing.assert_allclose(update, np.ones((2, 2)), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
