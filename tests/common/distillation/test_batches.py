"""Sources of training data."""

import pytest

from common.errors import UserError
from tests.trainers import Batches, arguments, distil


@pytest.mark.parametrize("size", [6, 9])
def test_a_source_of_another_batch_size_is_refused(tmp_path, teachers, size):
    trainer = distil(tmp_path, teachers, train_dataset=Batches(size), args=arguments(tmp_path, accumulate=2))
    with pytest.raises(UserError, match=f"batches of {size} samples, not 8"):
        trainer.train()
