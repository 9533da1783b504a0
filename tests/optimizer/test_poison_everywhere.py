"""5 poisons at 6 positions in 3 dtypes: eager, jitted, in a scan, on 8 devices, in 2 processes; dense, row-sparse, fused head."""

import poison
import pytest
import two_processes

pytestmark = pytest.mark.slow  # 1,350 drills


@pytest.mark.parametrize("dtype", poison.DTYPES)
@pytest.mark.parametrize("mode", poison.MODES)
@pytest.mark.parametrize("kind", poison.KINDS)
def test_poisoned_batch_leaves_no_trace(kind, mode, dtype):
    assert poison.drill(kind, mode, dtype) == {}


@pytest.mark.parametrize("kind", poison.KINDS)
def test_poisoned_batch_leaves_no_trace_in_two_processes(kind):
    for output in two_processes.outputs(poison.__file__, kind):
        found = [line for line in output.splitlines() if line.endswith("{}")]
        assert found == [f"{dtype} {{}}" for dtype in poison.DTYPES], output
