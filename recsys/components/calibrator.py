"""The calibrator of a ranker in a bundle: calibrator.json, and a token that names the ranker it was fitted for.

It is an optional role: a program that does not know it serves the same order of scores, not the same probabilities.
"""

from recsys.bundle import Bundle, BundleError, BundleStore
from recsys.evaluation.calibrators import Calibrator

ROLE = KIND = "calibrator"


def export_calibrator(store: BundleStore, calibrator: Calibrator, ranker: str) -> str:
    """Write the component; returns its id. ranker: the component id of the ranker."""
    return store.add_component(KIND, calibrator.save, token=_token(ranker))


def load_calibrator(bundle: Bundle) -> Calibrator | None:
    """That of a verified bundle, if it has one. Raises BundleError when it is damaged, or another ranker's."""
    if ROLE not in bundle.roles:
        return None
    if bundle.token(ROLE) != _token(bundle.part("ranker").component):
        raise BundleError(f"bundle {bundle.id[:12]}: the calibrator was fitted for another ranker than 'ranker'")
    try:
        return Calibrator.load(bundle.path(ROLE))
    except ValueError as error:
        raise BundleError(f"bundle {bundle.id[:12]}: {error}") from None


def _token(ranker: str) -> str:
    return f"ranker:{ranker}"
