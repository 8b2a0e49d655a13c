"""Pairs of a store in the formats of others."""

from kdm_core.pairs.exporting.npz import export_npz
from kdm_core.pairs.exporting.published import export_published
from kdm_core.pairs.exporting.selection import Selection, select
from kdm_core.pairs.exporting.webdataset import export_webdataset

__all__ = ["Selection", "export_npz", "export_published", "export_webdataset",
           "select"]
