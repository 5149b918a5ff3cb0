"""Where rows come from: the bundled sample, a folder in FinLoRA's layout, a bank's own folder, or the public sets of
the hub.
"""

from data.sources.layout import layout_of
from data.sources.listing import state_of_files
from data.sources.load import LoadedRows, data_fingerprints, load_rows

__all__ = ["LoadedRows", "data_fingerprints", "layout_of", "load_rows", "state_of_files"]
