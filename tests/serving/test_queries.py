"""Answers as values."""

import numpy as np

from serving.queries import Retrieved


def test_candidates_become_a_frame() -> None:
    answer = Retrieved(
        items=np.array(["b", "a"], dtype=object),
        scores=np.array([0.5, 0.25], np.float32),
        sources=np.array([0, 0], np.uint32),
        source_names=("mf",),
    )
    frame = answer.to_pandas()
    assert len(answer) == 2
    assert frame.to_dict("list") == {"rank": [1, 2], "item": ["b", "a"], "score": [0.5, 0.25], "source": ["mf", "mf"]}
