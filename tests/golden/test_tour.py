"""docs/tour.md shows what the pipeline does today."""

import importlib.util
from pathlib import Path

from tests.golden.fresh import without_measurements

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tour_is_fresh() -> None:
    spec = importlib.util.spec_from_file_location("make_tour", DOCS / "make_tour.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = (DOCS / "tour.md").read_text()
    assert without_measurements(shown) == without_measurements(module.tour()), (
        "write it anew with python docs/make_tour.py"
    )
