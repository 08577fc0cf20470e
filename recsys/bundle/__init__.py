"""The bundle store: immutable, content-addressed components, and manifests of them that can be served."""

from recsys.bundle.files import BundleError, Manifest, Role
from recsys.bundle.store import KINDS, Bundle, BundleStore

__all__ = ["KINDS", "Bundle", "BundleError", "BundleStore", "Manifest", "Role"]
