"""Set clips aside from the training list, so that an epoch can be chosen without the test list."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from dfer_deploy.clips.annotations import Annotation
from dfer_deploy.specs import require


def split_validation(
    annotations: list[Annotation], share: float, seed: int
) -> tuple[list[Annotation], list[Annotation]]:
    """Set aside a share of every class.

    The choice depends on the clips' names and the seed, not on the order of the list. Clips of one film or person can
    be on both sides, because the data sets' lists do not name persons.

    Args:
        annotations: the training clips.
        share: share of the clips of each class, more than 0 and less than 1. It is rounded, but at least one clip stays
            on either side. A class with one clip is used for training.
        seed: seed, 0 or more.

    Returns:
        Training clips and validation clips, both in the order of ``annotations``.

    Raises:
        DferDeployError: the share is not between 0 and 1, or no class has two clips.
    """
    require(0 < share < 1, f"the validation share is {share}, expected a share between 0 and 1")
    positions: dict[int, list[int]] = defaultdict(list)
    for position, annotation in enumerate(annotations):
        positions[annotation.label].append(position)
    chosen: set[int] = set()
    for label, members in positions.items():
        members.sort(key=lambda position: annotations[position].name)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        order = np.random.default_rng([seed, label]).permutation(len(members))
        chosen.update(members[index] for index in order[:count])
    require(
        bool(chosen),
        f"none of the {len(positions)} classes has two training clips, so no validation clips can be set aside; "
        "choose the epoch by run.select=last",
    )
    training = [annotation for position, annotation in enumerate(annotations) if position not in chosen]
    return training, [annotations[position] for position in sorted(chosen)]
